"""The plan of a transition: a change reaches the proxies in four stages, make before break.

1. ``clusters``: new and changed clusters and endpoints are sent. Every proxy must have them, and
   each cluster that routes will send requests to must have a healthy endpoint.
2. ``routes``: scopes, listeners, route configurations and virtual hosts are sent or removed. Every
   proxy must have that.
3. ``drain``: no request may still run on a cluster that goes. No proxy can begin a request there,
   because every proxy has acknowledged routes without the cluster.
4. ``remove``: the clusters that no route names and no request uses are removed.

So a route never names a cluster that does not exist: a proxy does not warm routes, and a route to a
missing cluster fails its requests. The resources that a stage wants depend only on the mesh before
and after the change (`wanted`). So a stage is undone by serving what the stage before it wanted.
A rollback takes the stages in reverse order, which is equally safe.

The planner reads resources and nothing else: it knows neither proxies nor time.
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
"""The types of resources that name clusters. The other types are clusters and endpoints."""

Changes = Mapping[ProxyKind, Change]
"""The changed resources of every proxy kind that has any."""


class StageKind(enum.StrEnum):
    """The stages of a transition, in order."""

    CLUSTERS = "clusters"
    ROUTES = "routes"
    DRAIN = "drain"
    REMOVE = "remove"

    @property
    def before(self) -> "StageKind | None":
        """The stage before this one; ``None`` before the first."""
        index = _ORDER.index(self)
        return _ORDER[index - 1] if index else None


_ORDER: Final = tuple(StageKind)

Reached = StageKind | None
"""The stage whose resources are served; ``None`` before the first."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What must hold before the next stage may begin.

    Attributes:
        acknowledged: Resources that every live proxy which subscribes to them must have, or must
            have dropped.
        healthy: Clusters that must have an endpoint which takes requests.
        drained: Clusters on which no request may still run.
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
        kind: Which stage.
        changes: The resources that are sent and removed.
        gate: What must hold before the next stage.
    """

    kind: StageKind
    changes: Changes
    gate: Gate


def wanted(
    reached: Reached, key: ResourceKey, before: Resource | None, after: Resource | None
) -> Resource | None:
    """The resource that a stage wants under a name.

    Args:
        reached: The stage.
        key: The name.
        before: The resource without the change, if any.
        after: The resource with the change, if any.
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
    """The difference between what is served and what a stage wants, for some names.

    Args:
        reached: The stage.
        served: What is served now.
        before: The mesh without the change.
        after: The mesh with the change.
        keys: The names that the change contains.
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
    """Divides a change into stages, and leaves out those that send nothing and wait for nothing.

    Args:
        before: What is served to every proxy kind that is changed.
        changes: The change.
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
            drained=_removed_clusters(changes) if kind is StageKind.DRAIN else frozenset(),
        )
        if gate:
            stages.append(Stage(kind, sent, gate))
    return tuple(stages)


def keys_of(change: Change) -> Iterable[ResourceKey]:
    """The names that a change contains."""
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


def _removed_clusters(changes: Changes) -> frozenset[str]:
    return frozenset(
        key.name for change in changes.values() for key in change.only(ResourceType.CLUSTER).delete
    )


def _newly_used(before: Mapping[ProxyKind, Resources], changes: Changes) -> frozenset[str]:
    """The clusters to which a route sends requests after a change, and sent none before."""
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
