"""The objects of hosts from the caches of a controller."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.kube.cache import ObjectCache
from tidegate.kube.resources import EndpointSlice, KubeObject, Manifest, Pod, Service, key_of
from tidegate.traffic.cluster.host_objects import HostObjects, ServiceHost
from tidegate.traffic.router import TrafficError

__all__ = [
    "DESTINATION_RULE_INDEXES",
    "ENDPOINT_SLICE_INDEXES",
    "VIRTUAL_SERVICE_INDEXES",
    "CachedObjects",
]

_NAMESPACE: Final = "namespace"
_DELEGATES_TO: Final = "namespace of a delegate"
_SERVICE: Final = "service"


def _namespace(item: KubeObject) -> Iterable[str]:
    yield item.metadata.namespace


def _delegates_to(item: Manifest) -> Iterable[str]:
    for route in item.spec.get("http") or ():
        if delegate := route.get("delegate"):
            yield str(delegate.get("namespace") or item.metadata.namespace)


def _service(item: EndpointSlice) -> Iterable[str]:
    yield item.service_key


VIRTUAL_SERVICE_INDEXES: Final[Mapping[str, Callable[[Manifest], Iterable[str]]]] = {
    _NAMESPACE: _namespace,
    _DELEGATES_TO: _delegates_to,
}
"""The indexes that the cache of VirtualServices needs."""

DESTINATION_RULE_INDEXES: Final[Mapping[str, Callable[[Manifest], Iterable[str]]]] = {
    _NAMESPACE: _namespace
}
"""The indexes that the cache of DestinationRules needs."""

ENDPOINT_SLICE_INDEXES: Final[Mapping[str, Callable[[EndpointSlice], Iterable[str]]]] = {
    _SERVICE: _service
}
"""The indexes that the cache of EndpointSlices needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedObjects:
    """Implements `ClusterObjects` by caches.

    Attributes:
        virtual_services: The VirtualServices, with `VIRTUAL_SERVICE_INDEXES`.
        destination_rules: The DestinationRules, with `DESTINATION_RULE_INDEXES`.
        services: The Services.
        endpoint_slices: The EndpointSlices, with `ENDPOINT_SLICE_INDEXES`.
        pods: The Pods.
        timeout_s: How long an answer waits for the last write of a VirtualService.
    """

    virtual_services: ObjectCache[Manifest]
    destination_rules: ObjectCache[Manifest]
    services: ObjectCache[Service]
    endpoint_slices: ObjectCache[EndpointSlice]
    pods: ObjectCache[Pod]
    timeout_s: float = 3.0

    async def of_host(self, host: ServiceHost, *, at_least: str = "") -> HostObjects:
        """Returns what there is for a host; see `ClusterObjects`.

        Raises:
            TrafficError: The cache does not show the last write in time.
        """
        namespace = host.namespace
        if at_least and not await self.virtual_services.reaches(
            at_least, self.timeout_s, namespace
        ):
            raise TrafficError(
                f"the API server has not shown the last write to a VirtualService of {namespace}"
                f" within {self.timeout_s:g} s"
            )
        slices = self.endpoint_slices.by(_SERVICE, key_of(host.service, namespace))
        names = {
            endpoint.target_ref.name
            for each in slices
            for endpoint in each.endpoints
            if endpoint.target_ref is not None
        }
        pods = {name: self.pods.get(key_of(name, namespace)) for name in names}
        return HostObjects(
            host=host,
            service=self.services.get(key_of(host.service, namespace)),
            virtual_services=self.virtual_services.by(_NAMESPACE, namespace),
            delegating=self.virtual_services.by(_DELEGATES_TO, namespace),
            destination_rules=self.destination_rules.by(_NAMESPACE, namespace),
            slices=slices,
            pods={name: pod for name, pod in pods.items() if pod is not None},
        )
