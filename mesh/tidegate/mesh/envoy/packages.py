"""The check that ``xds-protos`` has not overwritten files of other packages.

``xds-protos`` contains older copies of files of ``opentelemetry-proto`` and
``googleapis-common-protos``, at the same paths. If it is installed last, no Tidegate server starts:
the OTLP exporter does not find its messages. The check compares each file with the digest that its
installer recorded.
"""

import base64
import hashlib
import importlib.metadata
from collections.abc import Iterable

from tidegate.mesh.envoy.errors import EnvoyError

__all__ = ["check_packages", "overwritten"]

_OWNERS = ("opentelemetry-proto", "googleapis-common-protos")


def overwritten(distributions: Iterable[str] = _OWNERS) -> tuple[str, ...]:
    """Finds the packages with a file that is missing or overwritten.

    Args:
        distributions: The packages to check; a package that is not installed passes.

    Returns:
        The damaged packages as ``NAME==VERSION``, the form that pip takes.
    """
    found = []
    for name in distributions:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not all(_is_intact(file) for file in distribution.files or ()):
            found.append(f"{name}=={distribution.version}")
    return tuple(found)


def check_packages(distributions: Iterable[str] = _OWNERS) -> None:
    """Makes sure that no package is overwritten.

    Args:
        distributions: The packages to check.

    Raises:
        EnvoyError: A package is overwritten; the message has the command that repairs it.
    """
    if damaged := overwritten(distributions):
        raise EnvoyError(
            f"xds-protos has overwritten files of {' and '.join(damaged)}, without which no server "
            f"starts; run: pip install --no-deps --force-reinstall {' '.join(damaged)}"
        )


def _is_intact(file: importlib.metadata.PackagePath) -> bool:
    # Compiled files and RECORD itself have no digest.
    if file.hash is None or file.suffix != ".py":
        return True
    try:
        content = file.read_binary()
    except OSError:
        return False
    digest = hashlib.new(file.hash.mode, content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value
