"""The ready addresses of every Service, for the parts that stand in for kube-proxy and DNS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.settings import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.kube_api import KubeApi, Manifest

__all__ = ["ServiceTable"]

_SERVICE_LABEL = "kubernetes.io/service-name"


class ServiceTable:
    """Services, EndpointSlices and Pods of a cluster, as a watch last saw them.

    The table stays usable while the API server is down.

    Args:
        api: A client of the API server.
    """

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._services: dict[str, Manifest] = {}
        self._slices: dict[str, Manifest] = {}

    async def follow_services(self) -> None:
        """Keeps the Services up to date; never returns."""
        await self._follow("/api/v1/services", self._services)

    async def follow_slices(self) -> None:
        """Keeps the EndpointSlices up to date; never returns."""
        await self._follow("/apis/discovery.k8s.io/v1/endpointslices", self._slices)

    def has(self, namespace: str, service: str) -> bool:
        """Whether there is such a Service."""
        return any(_is_named(each, namespace, service) for each in self._services.values())

    def addresses(self, namespace: str, service: str) -> list[str]:
        """The ready addresses of a Service, in the order of their names."""
        found = {
            address for each in self._slices_of(namespace, service) for address in _ready(each)
        }
        return sorted(found)

    def endpoints(self, namespace: str, service: str, port: int) -> list[tuple[str, int]]:
        """The ready addresses behind one port of a Service, with the port of each.

        Raises:
            ClusterError: There is no such Service, or it has no such port.
        """
        found = [each for each in self._services.values() if _is_named(each, namespace, service)]
        if not found:
            raise ClusterError(f"there is no Service {namespace}/{service}")
        ports = found[0]["spec"].get("ports", [])
        names = [each.get("name", "") for each in ports if each["port"] == port]
        if not names:
            numbers = ", ".join(str(each["port"]) for each in ports)
            raise ClusterError(f"Service {namespace}/{service} has no port {port}, only {numbers}")
        return sorted(
            (address, behind["port"])
            for each in self._slices_of(namespace, service)
            for behind in each.get("ports") or []
            if behind.get("name", "") == names[0]
            for address in _ready(each)
        )

    def _slices_of(self, namespace: str, service: str) -> Iterator[Manifest]:
        for each in self._slices.values():
            metadata = each["metadata"]
            labels = metadata.get("labels", {})
            if metadata["namespace"] == namespace and labels.get(_SERVICE_LABEL) == service:
                yield each

    async def _follow(self, path: str, table: dict[str, Manifest]) -> None:
        async for seen in self._api.watch(path):
            if seen.deleted:
                table.pop(seen.uid, None)
            else:
                table[seen.uid] = seen.manifest


def _is_named(manifest: Manifest, namespace: str, name: str) -> bool:
    metadata: dict[str, Any] = manifest["metadata"]
    return (metadata["namespace"], metadata["name"]) == (namespace, name)


def _ready(endpoint_slice: Manifest) -> Iterator[str]:
    for each in endpoint_slice.get("endpoints") or []:
        if each.get("conditions", {}).get("ready", True):
            yield from each["addresses"]
