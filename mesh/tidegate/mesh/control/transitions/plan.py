"""The order in which a change of the mesh reaches the proxies: make before break, in four stages.

1. ``clusters``: what is new or different of clusters and endpoints is sent. Every proxy must have
   it, and what routes will send requests to must have a healthy endpoint.
2. ``routes``: scopes, listeners, route configurations and virtual hosts, those that go included.
   Every proxy must have them.
3. ``drain``: no request may still run on a cluster that goes. No proxy can begin one there any
   more, because the routes were acknowledged without it.
4. ``remove``: the clusters that nothing names and nothing uses go.

So at no time does a route name a cluster that is not there. What is to be served once a stage is
reached depends on the mesh before and after and on nothing else (`wanted`), so a stage is undone by
serving what the stage before it wanted: backwards, the stages give back the mesh as it was, in an
order that is as safe.

The planner sees resources and nothing else: it knows neither proxies nor time.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)

from tidegate.mesh.resources import (
    Change,
    ProxyKind,
    Resource,
    ResourceKey,
    Resources,
    ResourceType,
)

__all__ = [
    "ROUTING",
    "Changes",
    "Gate",
    "Reached",
    "Stage",
    "StageKind",
    "clusters_with_traffic",
    "keys_of",
    "plan",
    "step",
    "wanted",
]

ROUTING: Final = (
    ResourceType.SCOPED_ROUTE,
    ResourceType.LISTENER,
    ResourceType.ROUTE,
    ResourceType.VIRTUAL_HOST,
)
"""The types that name clusters; the others are what is named."""

Changes = Mapping[ProxyKind, Change]
"""A step for every proxy kind that it concerns."""


class StageKind(enum.StrEnum):
    """A part of a transition, in order."""

    CLUSTERS = "clusters"
    ROUTES = "routes"
    DRAIN = "drain"
    REMOVE = "remove"

    @property
    def before(self) -> "StageKind | None":
        """The stage before this one; none before the first."""
        index = _ORDER.index(self)
        return _ORDER[index - 1] if index else None


_ORDER: Final = tuple(StageKind)

Reached = StageKind | None
"""The stage whose resources are served; none before the first."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What must hold before the next stage may begin.

    Attributes:
        acknowledged: what every live proxy that asked for it must have, or no longer have.
        healthy: clusters that must have an endpoint which takes requests.
        drained: clusters on which no request may still run.
    """

    acknowledged: Mapping[ProxyKind, frozenset[ResourceKey]] = field(default_factory=dict)
    healthy: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.acknowledged or self.healthy or self.drained)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a transition.

    Attributes:
        kind: which one.
        changes: what is sent.
        gate: what must hold for it to be complete.
    """

    kind: StageKind
    changes: Changes
    gate: Gate


def wanted(
    reached: Reached, key: ResourceKey, before: Resource | None, after: Resource | None
) -> Resource | None:
    """What is to be served under a name once a stage is reached.

    Args:
        reached: the stage.
        key: the name.
        before: what is there without the change, if anything.
        after: what is there with the change, if anything.
    """
    if key.type in ROUTING:
        return before if reached in (None, StageKind.CLUSTERS) else after
    if reached is None:
        return before
    return before if after is None and reached is not StageKind.REMOVE else after


def step(
    reached: Reached,
    served: Resources,
    before: Resources,
    after: Resources,
    keys: Iterable[ResourceKey],
) -> Change:
    """What leads from what is served to what a stage wants, for some names.

    Args:
        reached: the stage.
        served: what is served now.
        before: the mesh without the change.
        after: the mesh with the change.
        keys: the names that the change is about.
    """
    put, delete = [], []
    for key in keys:
        old, new = served.get(key), wanted(reached, key, before.get(key), after.get(key))
        if new is not None and (old is None or old.version != new.version):
            put.append(new)
        elif new is None and old is not None:
            delete.append(key)
    return Change(tuple(put), tuple(delete))


def plan(before: Mapping[ProxyKind, Resources], changes: Changes) -> tuple[Stage, ...]:
    """Divides a change into stages; those that would do nothing and wait for nothing are left out.

    Args:
        before: what is served, to every proxy kind that is changed.
        changes: what shall be different.
    """
    stages = []
    for kind in StageKind:
        sent = _sent(kind, before, changes)
        acknowledged = {
            proxy_kind: frozenset(keys_of(change)) for proxy_kind, change in sent.items()
        }
        gate = Gate(
            acknowledged,
            healthy=_newly_used(before, changes) if kind is StageKind.CLUSTERS else frozenset(),
            drained=_leaving(changes) if kind is StageKind.DRAIN else frozenset(),
        )
        if gate:
            stages.append(Stage(kind, sent, gate))
    return tuple(stages)


def keys_of(change: Change) -> Iterable[ResourceKey]:
    """The names that a change is about."""
    return (*(each.key for each in change.put), *change.delete)


def _sent(kind: StageKind, before: Mapping[ProxyKind, Resources], changes: Changes) -> Changes:
    sent = {}
    for proxy_kind, change in changes.items():
        keys = keys_of(change)
        after = {each.key: each for each in change.put}
        served = {
            key: resource
            for key in keys
            if (resource := wanted(kind.before, key, before[proxy_kind].get(key), after.get(key)))
        }
        sent[proxy_kind] = step(kind, served, before[proxy_kind], after, keys)
    return {proxy_kind: change for proxy_kind, change in sent.items() if change}


def _leaving(changes: Changes) -> frozenset[str]:
    return frozenset(
        key.name for change in changes.values() for key in change.only(ResourceType.CLUSTER).delete
    )


def _newly_used(before: Mapping[ProxyKind, Resources], changes: Changes) -> frozenset[str]:
    """The clusters that get requests after a change of routes and got none from the same before."""
    used: set[str] = set()
    for proxy_kind, change in changes.items():
        for resource in change.only(*ROUTING).put:
            old = before[proxy_kind].get(resource.key)
            already = clusters_with_traffic(old) if old is not None else ()
            used |= set(clusters_with_traffic(resource)).difference(already)
    return frozenset(used)


def clusters_with_traffic(resource: Resource) -> Iterator[str]:
    """The clusters to which a resource sends some share of the requests, or copies of them."""
    match resource.key.type:
        case ResourceType.VIRTUAL_HOST:
            host = route_components_pb2.VirtualHost.FromString(resource.body.value)
            yield from _of_virtual_host(host)
        case ResourceType.SCOPED_ROUTE:
            scope = scoped_route_pb2.ScopedRouteConfiguration.FromString(resource.body.value)
            yield from _of_routes(scope.route_configuration)
        case ResourceType.ROUTE:
            yield from _of_routes(route_pb2.RouteConfiguration.FromString(resource.body.value))
        case ResourceType.LISTENER:
            listener = listener_pb2.Listener.FromString(resource.body.value)
            for manager in _connection_managers(listener):
                yield from _of_routes(manager.route_config)
        case _:
            return


def _connection_managers(
    listener: listener_pb2.Listener,
) -> Iterator[http_connection_manager_pb2.HttpConnectionManager]:
    chains = (*listener.filter_chains, listener.default_filter_chain)
    packed = [each.typed_config for chain in chains for each in chain.filters]
    for each in (*packed, listener.api_listener.api_listener):
        manager = http_connection_manager_pb2.HttpConnectionManager()
        if each.Unpack(manager):
            yield manager


def _of_routes(routes: route_pb2.RouteConfiguration) -> Iterator[str]:
    for mirror in routes.request_mirror_policies:
        yield from _of_mirror(mirror)
    for host in routes.virtual_hosts:
        yield from _of_virtual_host(host)


def _of_virtual_host(host: route_components_pb2.VirtualHost) -> Iterator[str]:
    for mirror in host.request_mirror_policies:
        yield from _of_mirror(mirror)
    for route in host.routes:
        yield from _of_action(route.route)


def _of_action(action: route_components_pb2.RouteAction) -> Iterator[str]:
    if action.cluster:
        yield action.cluster
    for weighted in action.weighted_clusters.clusters:
        if weighted.weight.value:
            yield weighted.name
    for mirror in action.request_mirror_policies:
        yield from _of_mirror(mirror)


def _of_mirror(
    mirror: route_components_pb2.RouteAction.RequestMirrorPolicy,
) -> Iterator[str]:
    share = mirror.runtime_fraction.default_value.numerator
    if mirror.cluster and (share or not mirror.HasField("runtime_fraction")):
        yield mirror.cluster
