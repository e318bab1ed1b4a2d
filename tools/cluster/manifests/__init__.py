"""The objects of `make cluster`, which tests use too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["manifests", "read_manifests"]

_FOLDER: Final = Path(__file__).parent


def manifests(*names: str) -> list[dict[str, Any]]:
    """Reads files of this folder.

    Args:
        names: Their names without the suffix: `ingress`, `models` (vision v1 and v2) or `llm`.
    """
    return read_manifests(*(_FOLDER / f"{name}.yaml" for name in names))


def read_manifests(*paths: Path) -> list[dict[str, Any]]:
    """Reads the objects of files, and of all YAML files of folders."""
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) or [path])]
    return [
        each
        for file in files
        for each in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)
        if each
    ]
