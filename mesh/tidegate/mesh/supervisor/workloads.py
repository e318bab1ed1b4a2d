"""The supervisor's interface to the mesh: a WorkloadEntry file for each server, and Envoy's hosts.

On a cluster the orchestrator knows where each pod is; here the supervisor does. The controller
reads the folder of WorkloadEntries and checks by itself which of them are healthy.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tidegate.mesh.envoy import Admin, AdminError

__all__ = ["EnvoyRouting", "WorkloadEntryFile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEntryFile:
    """The file with the WorkloadEntry of a server process.

    Attributes:
        name: The name of the WorkloadEntry.
        namespace: Its namespace.
        labels: The labels by which services and subsets select it.
        port_name: The name of the port, as in the ServiceEntry.
        file: The path of the file.
        readiness: The HTTP path that tells whether the process takes requests; empty if gRPC does.
    """

    name: str
    namespace: str
    labels: Mapping[str, str]
    port_name: str
    file: Path
    readiness: str = ""

    def write(self, address: str) -> None:
        """Adds the process to the mesh, at ``HOST:PORT``."""
        host, _, port = address.rpartition(":")
        metadata: dict[str, object] = {"name": self.name, "namespace": self.namespace}
        if self.readiness:
            metadata["annotations"] = {"tidegate.dev/readiness": self.readiness}
        entry = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": metadata,
            "spec": {
                "address": host.strip("[]"),
                "ports": {self.port_name: int(port)},
                "labels": dict(self.labels),
            },
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # The controller reads no file with this suffix, so it never reads half a file.
        draft = self.file.with_suffix(".new")
        draft.write_text(yaml.safe_dump(entry, sort_keys=False), encoding="utf-8")
        draft.replace(self.file)

    def remove(self) -> None:
        """Removes the process from the mesh."""
        self.file.unlink(missing_ok=True)


class EnvoyRouting:
    """The endpoints to which Envoy sends requests.

    Args:
        admin_file: The file to which Envoy writes the address of its admin interface.
    """

    def __init__(self, admin_file: Path) -> None:
        self._admin_file = admin_file

    async def clusters_of(self, address: str) -> frozenset[str]:
        """The clusters in which an endpoint gets requests; none while Envoy does not answer."""
        try:
            text = await asyncio.to_thread(self._admin_file.read_text, encoding="utf-8")
            hosts = await Admin(text.strip()).hosts()
        except (OSError, AdminError):
            return frozenset()
        return frozenset(
            cluster
            for cluster, members in hosts.items()
            if any(host.healthy and host.address == address for host in members)
        )
