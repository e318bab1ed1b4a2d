"""Whether packages that share files with ``xds-protos`` are whole.

``xds-protos`` brings copies of its own, older, of files that belong to ``opentelemetry-proto`` and
``googleapis-common-protos``, and puts them in the same places. Installed last, it keeps every
Tidegate server from starting: the OTLP exporter no longer finds its messages. What each package
recorded of its files when it was installed tells.
"""

import base64
import hashlib
import importlib.metadata
from collections.abc import Iterable

from tidegate.mesh.envoy.errors import EnvoyError

__all__ = ["check_packages", "overwritten"]

_OWNERS = ("opentelemetry-proto", "googleapis-common-protos")


def overwritten(distributions: Iterable[str] = _OWNERS) -> tuple[str, ...]:
    """The packages of which a file is missing or is not the one that they installed.

    Args:
        distributions: the packages to look at; one that is not installed is whole.

    Returns:
        Each with its version, ``NAME==VERSION``, as an installer takes it.
    """
    found = []
    for name in distributions:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not all(_is_own(file) for file in distribution.files or ()):
            found.append(f"{name}=={distribution.version}")
    return tuple(found)


def check_packages(distributions: Iterable[str] = _OWNERS) -> None:
    """Makes sure that no package is overwritten.

    Args:
        distributions: the packages to look at.

    Raises:
        EnvoyError: some are; the message says how to put them right.
    """
    if damaged := overwritten(distributions):
        raise EnvoyError(
            f"xds-protos has overwritten files of {' and '.join(damaged)}, without which no server "
            f"starts; run: pip install --no-deps --force-reinstall {' '.join(damaged)}"
        )


def _is_own(file: importlib.metadata.PackagePath) -> bool:
    # Compiled files and the record itself have no digest.
    if file.hash is None or file.suffix != ".py":
        return True
    try:
        content = file.read_binary()
    except OSError:
        return False
    digest = hashlib.new(file.hash.mode, content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value
