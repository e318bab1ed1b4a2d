"""The volumes of a Pod, as folders of this machine."""

from __future__ import annotations

import base64
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cluster.kube_api import KubeApi, Manifest

__all__ = ["KNOWN_VOLUMES", "PodVolumes"]

KNOWN_VOLUMES: Final = ("configMap", "emptyDir", "secret")
"""The kinds of volumes that there are here."""

_PLURALS: Final = {"configMap": "configmaps", "secret": "secrets"}


@dataclass(frozen=True, slots=True)
class PodVolumes:
    """The volumes of one Pod.

    Attributes:
        folder: The folder that has one folder for each volume.
    """

    folder: Path

    async def make(self, pod: Manifest, names: Iterable[str], api: KubeApi) -> None:
        """Makes the folders of the volumes that containers mount.

        What a ConfigMap or a Secret has is copied once, and does not follow later changes.

        Args:
            pod: The Pod.
            names: The names of the volumes.
            api: A client of the API server.

        Raises:
            ApiError: There is no such ConfigMap or Secret.
        """
        spec = pod["spec"]
        group = (spec.get("securityContext") or {}).get("fsGroup", -1)
        known = {each["name"]: each for each in spec.get("volumes", ())}
        for name in sorted(set(names)):
            made, volume = self.folder / name, known[name]
            made.mkdir(parents=True)
            for kind, plural in _PLURALS.items():
                if kind in volume:
                    await self._fill(made, pod, volume[kind], plural, api)
            os.chown(made, -1, group)
            # As the kubelet does: what is made inside belongs to the group.
            made.chmod(0o2777 if "emptyDir" in volume else 0o2755)

    def path(self, volume: str, sub_path: str) -> Path:
        """Where a volume, or a part of it, lies."""
        return self.folder / volume / sub_path

    def remove(self) -> None:
        """Removes the folders."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _fill(
        self, folder: Path, pod: Manifest, source: Mapping[str, Any], plural: str, api: KubeApi
    ) -> None:
        name = source.get("name", source.get("secretName"))
        namespace = pod["metadata"]["namespace"]
        found = await api.call("GET", f"/api/v1/namespaces/{namespace}/{plural}/{name}")
        content = {key: value.encode() for key, value in found.get("data", {}).items()}
        if plural == "secrets":
            content = {key: base64.b64decode(value) for key, value in content.items()}
        for key, value in found.get("binaryData", {}).items():
            content[key] = base64.b64decode(value)
        paths = {each["key"]: each["path"] for each in source.get("items", ())}
        for key, value in content.items():
            if not paths or key in paths:
                at = folder / paths.get(key, key)
                at.parent.mkdir(parents=True, exist_ok=True)
                at.write_bytes(value)
