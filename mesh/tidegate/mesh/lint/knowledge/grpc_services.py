"""The gRPC services that installed packages have protos of.

Tidegate's own services and gRPC's standard ones are always known. A package of protos beyond these
is known if its generated modules are installed where its name says: ``acme.search.v1`` as
``acme/search/v1/*_pb2.py``. Nothing is asked on the network.
"""

import enum
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

__all__ = ["PathVerdict", "is_grpc_path", "is_known_service", "judge_path"]

# Modules of packages whose protos are not where their names say.
_STANDARD: Final = (
    "grpc_health.v1.health_pb2",
    "grpc_reflection.v1alpha.reflection_pb2",
    "grpc_channelz.v1.channelz_pb2",
)
# Servers with reflection answer this name too, and no package of Python has its proto.
_WITHOUT_MODULE: Final = {
    "grpc.reflection.v1.ServerReflection": frozenset({"ServerReflectionInfo"})
}
# A name without a method must look like a service's: /index.html is none.
_GRPC_PATH: Final = re.compile(
    r"/[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.([A-Za-z_]\w*/[\w*{}]*|[A-Z]\w*|\w*\*)"
)
_PACKAGE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class PathVerdict(enum.Enum):
    """What the protos say of a path."""

    KNOWN = "a method has it"
    NO_SERVICE = "its package has no such service"
    NO_METHOD = "its service has no such method"
    INCOMPLETE = "it has no method"
    UNKNOWN_PACKAGE = "no installed package has its proto"


def is_grpc_path(path: str) -> bool:
    """Whether a path, or a pattern of Istio, is that of gRPC methods: ``/pkg.Service/Method``."""
    return _GRPC_PATH.fullmatch(path) is not None


def is_known_service(name: str) -> bool:
    """Whether an installed package has the proto of a service."""
    return name in _services(name.rpartition(".")[0])


def judge_path(path: str) -> PathVerdict:
    """Judges a path, or a pattern of Istio, for which `is_grpc_path` is true."""
    service, slash, method = path[1:].partition("/")
    if service.endswith("*"):
        prefix = service.removesuffix("*")
        found = _services(prefix.rpartition(".")[0])
        if any(name.startswith(prefix) for name in found):
            return PathVerdict.KNOWN
        return PathVerdict.NO_SERVICE if found else PathVerdict.UNKNOWN_PACKAGE
    found = _services(service.rpartition(".")[0])
    if not found:
        return PathVerdict.UNKNOWN_PACKAGE
    if service not in found:
        return PathVerdict.NO_SERVICE
    if not slash or not method:
        return PathVerdict.INCOMPLETE
    # Istio's {*} and {**} match a whole method.
    pattern = method if "{" not in method else "*"
    prefix = pattern.removesuffix("*")
    fits = (
        name.startswith(prefix) if pattern.endswith("*") else name == pattern
        for name in found[service]
    )
    return PathVerdict.KNOWN if any(fits) else PathVerdict.NO_METHOD


@functools.cache
def _services(package: str) -> Mapping[str, frozenset[str]]:
    """The services of a package of protos, with their methods; empty where it is unknown."""
    known = _known()
    found = {name: known[name] for name in known if name.rpartition(".")[0] == package}
    if found or not _PACKAGE.fullmatch(package):
        return found
    return {
        name: methods
        for module in _installed(package)
        for name, methods in _of(module)
        if name.rpartition(".")[0] == package
    }


@functools.cache
def _known() -> Mapping[str, frozenset[str]]:
    """The services of Tidegate and of gRPC."""
    namespace = importlib.util.find_spec("tidegate")
    roots = (namespace.submodule_search_locations or []) if namespace is not None else []
    # Stubs lie in folders named for package and version.
    own = [
        ".".join(("tidegate", *path.relative_to(root).with_suffix("").parts))
        for root in roots
        for path in sorted(Path(root).glob("*/v*/*_pb2.py"))
    ]
    modules = [importlib.import_module(name) for name in (*own, *_STANDARD)]
    return {name: methods for each in modules for name, methods in _of(each)} | _WITHOUT_MODULE


def _installed(package: str) -> Iterator[ModuleType]:
    """Imports the generated modules of a package, where its name says that they are."""
    folder = Path(*package.split("."))
    for root in sys.path:
        # An empty entry is the current folder, whose modules no one has installed.
        files = sorted((Path(root) / folder).glob("*_pb2.py")) if root else []
        for each in files:
            try:
                yield importlib.import_module(f"{package}.{each.stem}")
            except Exception:  # noqa: BLE001 - a module that cannot be imported tells nothing
                return
        if files:
            return


def _of(module: ModuleType) -> Iterator[tuple[str, frozenset[str]]]:
    """Yields the services of a generated module, each with its methods."""
    for each in module.DESCRIPTOR.services_by_name.values():
        yield each.full_name, frozenset(each.methods_by_name)
