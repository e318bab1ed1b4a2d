"""Where the objects of a host come from: caches in the controller, direct calls in a command."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

from tidegate.istio.shapes import HostName
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import NotFoundError
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENDPOINT_SLICES,
    ENVOY_FILTERS,
    PODS,
    SERVICES,
    VIRTUAL_SERVICES,
    KubeObject,
    Pod,
    Resource,
)
from tidegate.traffic.cluster.host_objects import HostObjects, ServiceHost
from tidegate.traffic.cluster.sticky import filter_name
from tidegate.traffic.router import TrafficError

__all__ = ["ClusterObjects", "DirectObjects", "LaggingError", "fetched"]

T = TypeVar("T", bound=KubeObject)

_SERVICE_NAME: Final = "kubernetes.io/service-name"
_NOTHING: Final[Mapping[str, str]] = {}


class LaggingError(TrafficError):
    """A cache does not show a write that this process has made."""


class ClusterObjects(Protocol):
    """Reads the objects of hosts."""

    def changes(self, namespace: str) -> int | None:
        """Returns a number that another answer to `of_host` comes with; None if nobody knows.

        While it stays the same, so do the answers for the hosts of a namespace.
        """
        ...

    async def of_host(
        self,
        host: ServiceHost,
        *,
        name: str = "",
        callers: Sequence[HostName] = (),
        at_least: str = "",
        filters_at_least: Mapping[str, str] = _NOTHING,
    ) -> HostObjects:
        """Returns what there is for a host.

        Args:
            host: The host.
            name: A VirtualService that the answer must have too, with those that delegate to it
                and its EnvoyFilters; empty for none.
            callers: Hosts whose VirtualServices the answer must have too.
            at_least: A resource version of a VirtualService that the answer must have seen.
            filters_at_least: By namespace, a resource version of an EnvoyFilter that the answer
                must have seen.

        Raises:
            LaggingError: The answer has not seen that version in time.
            KubeError: The API server does not answer, or refuses.
        """
        ...


class DirectObjects:
    """Implements `ClusterObjects` by calls to the API server.

    It reads the host's own namespace only, and EnvoyFilters where it is told.

    Args:
        client: The API server.
        filter_namespaces: Where EnvoyFilters that keep users on a version may be written.
    """

    def __init__(self, client: KubeClient, filter_namespaces: Sequence[str] = ()) -> None:
        self._client = client
        self._filter_namespaces = tuple(filter_namespaces)

    def changes(self, namespace: str) -> int | None:
        """Knows no number: the API server has to be asked."""
        del namespace
        return None

    async def of_host(
        self,
        host: ServiceHost,
        *,
        name: str = "",
        callers: Sequence[HostName] = (),
        at_least: str = "",
        filters_at_least: Mapping[str, str] = _NOTHING,
    ) -> HostObjects:
        """Returns what there is for a host; see `ClusterObjects`."""
        # The answer has every VirtualService, and is never older than an earlier write.
        del callers, at_least, filters_at_least
        client, namespace = self._client, host.namespace
        service = await fetched(client, SERVICES, host.service, namespace)
        selector = "" if service is None else _selector(service.spec.selector)
        services = await client.list(VIRTUAL_SERVICES, namespace)
        rules = await client.list(DESTINATION_RULES, namespace)
        slices = await client.list(
            ENDPOINT_SLICES, namespace, label_selector=f"{_SERVICE_NAME}={host.service}"
        )
        pods: Mapping[str, Pod] = {}
        if selector:
            found = await client.list(PODS, namespace, label_selector=selector)
            pods = {each.metadata.name: each for each in found.items}
        filters = {
            each: await fetched(client, ENVOY_FILTERS, filter_name(namespace, name), each)
            for each in (self._filter_namespaces if name else ())
        }
        return HostObjects(
            host=host,
            service=service,
            virtual_services=tuple(services.items),
            delegating=tuple(services.items),
            destination_rules=tuple(rules.items),
            slices=tuple(slices.items),
            pods=pods,
            filters=filters,
        )


async def fetched(client: KubeClient, resource: Resource[T], name: str, namespace: str) -> T | None:
    """Returns an object as the API server has it; None if there is none.

    Raises:
        KubeError: The API server does not answer, or refuses.
    """
    try:
        return await client.get(resource, name, namespace)
    except NotFoundError:
        return None


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())
