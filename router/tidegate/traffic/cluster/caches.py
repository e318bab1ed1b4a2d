"""The objects of hosts from the caches of a controller."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tidegate.istio import full_host_name
from tidegate.istio.shapes import HostName
from tidegate.kube.cache import ObjectCache
from tidegate.kube.resources import EndpointSlice, Manifest, Pod, Service, key_of
from tidegate.traffic.cluster.host_objects import HostObjects, ServiceHost, destination_hosts
from tidegate.traffic.cluster.objects import LaggingError
from tidegate.traffic.cluster.sticky import filter_name, namespace_of_filter

__all__ = [
    "DESTINATION_RULE_INDEXES",
    "ENDPOINT_SLICE_INDEXES",
    "VIRTUAL_SERVICE_INDEXES",
    "CachedObjects",
]

_ROUTES: Final = "a host that it routes"
_CALLERS: Final = "a host of its callers"
_DELEGATE: Final = "a delegate of it"
_HOST: Final = "host"
_SERVICE: Final = "service"
_NOTHING: Final[Mapping[str, str]] = {}
_ALL: Final = ""


def _routed(item: Manifest) -> Iterable[str]:
    namespace = item.metadata.namespace
    for each in dict.fromkeys(destination_hosts(item)):
        yield key_of(each, namespace)


def _callers(item: Manifest) -> Iterable[str]:
    namespace = item.metadata.namespace
    for each in item.spec.get("hosts") or ():
        yield key_of(full_host_name(str(each), namespace), namespace)


def _delegates(item: Manifest) -> Iterable[str]:
    for route in item.spec.get("http") or ():
        if delegate := route.get("delegate"):
            namespace = str(delegate.get("namespace") or item.metadata.namespace)
            yield key_of(str(delegate.get("name")), namespace)


def _ruled(item: Manifest) -> Iterable[str]:
    namespace = item.metadata.namespace
    yield key_of(full_host_name(str(item.spec.get("host", "")), namespace), namespace)


def _service(item: EndpointSlice) -> Iterable[str]:
    yield item.service_key


VIRTUAL_SERVICE_INDEXES: Final[Mapping[str, Callable[[Manifest], Iterable[str]]]] = {
    _ROUTES: _routed,
    _CALLERS: _callers,
    _DELEGATE: _delegates,
}
"""The indexes that the cache of VirtualServices needs."""

DESTINATION_RULE_INDEXES: Final[Mapping[str, Callable[[Manifest], Iterable[str]]]] = {_HOST: _ruled}
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
        envoy_filters: The EnvoyFilters of `filter_namespaces`; None if there is no such namespace.
        filter_namespaces: Where EnvoyFilters that keep users on a version may be written.
        timeout_s: How long an answer waits for the last write of an object.
    """

    virtual_services: ObjectCache[Manifest]
    destination_rules: ObjectCache[Manifest]
    services: ObjectCache[Service]
    endpoint_slices: ObjectCache[EndpointSlice]
    pods: ObjectCache[Pod]
    envoy_filters: ObjectCache[Manifest] | None = None
    filter_namespaces: tuple[str, ...] = ()
    timeout_s: float = 3.0
    _changes: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        """Counts changes from now on, as long as the caches last."""
        # A VirtualService of any namespace may delegate to one of another.
        self.virtual_services.on_change(lambda *_: self._changes.update((_ALL,)))
        for cache in (self.destination_rules, self.services, self.endpoint_slices, self.pods):
            cache.on_change(self._count)
        if self.envoy_filters is not None:
            self.envoy_filters.on_change(self._count_filter)

    def _count(self, key: str, *_: object) -> None:
        self._changes[key.partition("/")[0]] += 1

    def _count_filter(self, key: str, *_: object) -> None:
        if namespace := namespace_of_filter(key.partition("/")[2]):
            self._changes[namespace] += 1

    def changes(self, namespace: str) -> int | None:
        """Returns how many changes there were that may be about hosts of a namespace."""
        return self._changes[_ALL] + self._changes[namespace]

    async def of_host(
        self,
        host: ServiceHost,
        *,
        name: str = "",
        callers: Sequence[HostName] = (),
        at_least: str = "",
        filters_at_least: Mapping[str, str] = _NOTHING,
    ) -> HostObjects:
        """Returns what there is for a host; see `ClusterObjects`.

        Raises:
            LaggingError: The cache does not show the last write in time.
        """
        namespace = host.namespace
        if at_least:
            await self._reach("a VirtualService", self.virtual_services, at_least, namespace)
        if self.envoy_filters is not None:
            for where, version in filters_at_least.items():
                await self._reach("an EnvoyFilter", self.envoy_filters, version, where)
        services, rules = self.virtual_services, self.destination_rules
        own = key_of(host.service, namespace)
        slices = self.endpoint_slices.by(_SERVICE, own)
        names = {
            endpoint.target_ref.name
            for each in slices
            for endpoint in each.endpoints
            if endpoint.target_ref is not None
        }
        pods = {each: self.pods.get(key_of(each, namespace)) for each in sorted(names)}
        return HostObjects(
            host=host,
            service=self.services.get(own),
            virtual_services=_distinct(
                services.by(_ROUTES, key_of(host.name, namespace)),
                (services.get(key_of(name, namespace)),),
                *(services.by(_CALLERS, key_of(each, namespace)) for each in callers),
            ),
            delegating=services.by(_DELEGATE, key_of(name, namespace)),
            destination_rules=_distinct(
                rules.by(_HOST, key_of(host.name, namespace)), (rules.get(own),)
            ),
            slices=slices,
            pods={each: pod for each, pod in pods.items() if pod is not None},
            filters=self._filters(namespace, name),
        )

    async def _reach(
        self, kind: str, cache: ObjectCache[Manifest], version: str, namespace: str
    ) -> None:
        if not await cache.reaches(version, self.timeout_s, namespace):
            raise LaggingError(
                f"the API server has not shown the last write to {kind} of {namespace} within"
                f" {self.timeout_s:g} s"
            )

    def _filters(self, namespace: str, service: str) -> dict[str, Manifest | None]:
        """The EnvoyFilters for the routes of a VirtualService, by namespace."""
        if self.envoy_filters is None or not service:
            return {}
        name = filter_name(namespace, service)
        return {each: self.envoy_filters.get(key_of(name, each)) for each in self.filter_namespaces}


def _distinct(*groups: Iterable[Manifest | None]) -> tuple[Manifest, ...]:
    """Returns objects without repetitions, in the order of their names."""
    found = {each.key: each for group in groups for each in group if each is not None}
    return tuple(found[key] for key in sorted(found))
