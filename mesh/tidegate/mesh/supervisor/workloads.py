"""What the mesh is told of the servers: a WorkloadEntry in a file for each that runs.

On a cluster the orchestrator knows where each pod is; here the supervisor does. The controller
reads the folder and finds out by itself which of the entries serve.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tidegate.mesh.envoy import Admin, AdminError

__all__ = ["Routing", "Workload"]

_PORT_NAME = "grpc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A server process as the mesh knows it.

    Attributes:
        name: name of its object.
        namespace: namespace of its object.
        labels: what services and subsets select it by.
        file: where its object is written.
    """

    name: str
    namespace: str
    labels: Mapping[str, str]
    file: Path

    def enter(self, address: str) -> None:
        """Tells the mesh that it is there, at ``HOST:PORT``."""
        host, _, port = address.rpartition(":")
        entry = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "address": host.strip("[]"),
                "ports": {_PORT_NAME: int(port)},
                "labels": dict(self.labels),
            },
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, under a name that nobody takes for an object.
        draft = self.file.with_suffix(".new")
        draft.write_text(yaml.safe_dump(entry, sort_keys=False), encoding="utf-8")
        draft.replace(self.file)

    def leave(self) -> None:
        """Tells the mesh that it is gone."""
        self.file.unlink(missing_ok=True)


class Routing:
    """Which endpoints Envoy sends requests to.

    Args:
        admin_file: where Envoy writes the address of its admin interface.
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
