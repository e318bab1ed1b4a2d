"""What should be served, as proxies get to see it.

A world holds the resources of one proxy kind under their type and name. Two things differ from what
the compiler made. The version of endpoints names their cluster's version too, because a cluster
that has changed is warm only when its endpoints have come once more, changed or not (Envoy, "xDS
protocol", resource warming): so the same endpoints under a new cluster are something new to send,
also to a proxy that comes back in the middle, or has refused them (docs/mesh-ads.md, "When a proxy
refuses"). And an Envoy that asks for the state of the world
cannot ask for virtual hosts one by one (VHDS), so it sees a world in which each route
configuration has its virtual hosts inside.

Every change costs in proportion to itself.
"""

import hashlib
from collections.abc import Collection, Iterable
from types import MappingProxyType
from typing import Final, Protocol

from envoy.config.route.v3 import route_pb2

from tidegate.mesh.resources import Change, Resource, ResourceKey, Resources, ResourceType, Version

__all__ = ["InlinedSnapshot", "ResourceSnapshot", "SnapshotView", "route_of"]

_CLUSTER: Final = ResourceType.CLUSTER
_ENDPOINT: Final = ResourceType.ENDPOINT
_ROUTE: Final = ResourceType.ROUTE
_VIRTUAL_HOST: Final = ResourceType.VIRTUAL_HOST


class SnapshotView(Protocol):
    """A world as the streams of one kind see it."""

    @property
    def loaded(self) -> bool:
        """Whether it is known what should be served."""
        ...

    def find(self, type: ResourceType, name: str) -> Resource | None:  # noqa: A002
        """The resource of that name, with its version on the wire."""
        ...

    def names(self, type: ResourceType) -> Collection[str]:  # noqa: A002
        """The names of all resources of a type."""
        ...

    def virtual_hosts(self, route: str) -> Collection[str]:
        """The names of the virtual hosts that are served apart from their route configuration."""
        ...

    def carrier(self, key: ResourceKey) -> ResourceKey:
        """The resource in which this one travels: itself, mostly."""
        ...

    def seen(self, touched: Iterable[ResourceKey]) -> Iterable[ResourceKey]:
        """What looks different here after a change of the world."""
        ...


def route_of(virtual_host: str) -> str:
    """The route configuration of a virtual host that is named ``ROUTE/DOMAIN``."""
    return virtual_host.rpartition("/")[0]


class ResourceSnapshot:
    """The resources of one proxy kind. Implements `SnapshotView`."""

    def __init__(self) -> None:
        self.loaded = False
        self._served: dict[ResourceKey, Resource] = {}
        self._wire: dict[ResourceType, dict[str, Resource]] = {each: {} for each in ResourceType}
        self._virtual_hosts: dict[str, set[str]] = {}

    @property
    def served(self) -> Resources:
        """What was put in; a live, read-only view."""
        return MappingProxyType(self._served)

    def apply(self, change: Change) -> list[ResourceKey]:
        """Takes a change in.

        Returns:
            Every key whose resource has changed on the wire, once.
        """
        self.loaded = True
        touched = dict.fromkeys(each.key for each in change.put if self._put(each))
        touched |= dict.fromkeys(key for key in change.delete if self._delete(key))
        for key in list(touched):
            # Endpoints that outlive their cluster keep the version they had with it.
            if key.type in {_CLUSTER, _ENDPOINT} and key in self._served:
                touched |= dict.fromkeys(self._rewire_endpoints(key.name))
        return list(touched)

    def find(self, type: ResourceType, name: str) -> Resource | None:  # noqa: A002
        """See `SnapshotView`."""
        return self._wire[type].get(name)

    def names(self, type: ResourceType) -> Collection[str]:  # noqa: A002
        """See `SnapshotView`."""
        return self._wire[type].keys()

    def virtual_hosts(self, route: str) -> Collection[str]:
        """See `SnapshotView`."""
        return self._virtual_hosts.get(route, frozenset())

    def carrier(self, key: ResourceKey) -> ResourceKey:
        """See `SnapshotView`."""
        return key

    def seen(self, touched: Iterable[ResourceKey]) -> Iterable[ResourceKey]:
        """See `SnapshotView`."""
        return touched

    def _put(self, resource: Resource) -> bool:
        key = resource.key
        old = self._served.get(key)
        if old is not None and old.version == resource.version:
            return False
        self._served[key] = resource
        if key.type is not _ENDPOINT:
            self._wire[key.type][key.name] = resource
        if key.type is _VIRTUAL_HOST:
            self._virtual_hosts.setdefault(route_of(key.name), set()).add(key.name)
        return True

    def _delete(self, key: ResourceKey) -> bool:
        if self._served.pop(key, None) is None:
            return False
        self._wire[key.type].pop(key.name, None)
        if key.type is _VIRTUAL_HOST:
            route = route_of(key.name)
            self._virtual_hosts[route].discard(key.name)
            if not self._virtual_hosts[route]:
                del self._virtual_hosts[route]
        return True

    def _rewire_endpoints(self, name: str) -> tuple[ResourceKey, ...]:
        key = ResourceKey(_ENDPOINT, name)
        endpoints = self._served.get(key)
        if endpoints is None:
            return ()
        cluster = self._served.get(ResourceKey(_CLUSTER, name))
        if cluster is not None:
            version = Version(f"{cluster.version}.{endpoints.version}")
            endpoints = Resource(key, endpoints.body, version)
        self._wire[_ENDPOINT][name] = endpoints
        return (key,)


class InlinedSnapshot:
    """A world in which route configurations hold their virtual hosts. Implements `SnapshotView`.

    Args:
        world: what it is made from; only route configurations that would be completed by VHDS
            differ. They are put together when they are looked at, and kept until they change.
    """

    def __init__(self, world: ResourceSnapshot) -> None:
        self._world = world
        self._made: dict[str, Resource] = {}

    @property
    def loaded(self) -> bool:
        """See `SnapshotView`."""
        return self._world.loaded

    def find(self, type: ResourceType, name: str) -> Resource | None:  # noqa: A002
        """See `SnapshotView`."""
        if type is _VIRTUAL_HOST:
            return None
        found = self._world.find(type, name)
        if type is not _ROUTE or found is None:
            return found
        if name not in self._made:
            self._made[name] = self._complete(found)
        return self._made[name]

    def names(self, type: ResourceType) -> Collection[str]:  # noqa: A002
        """See `SnapshotView`."""
        return () if type is _VIRTUAL_HOST else self._world.names(type)

    def virtual_hosts(self, route: str) -> Collection[str]:
        """See `SnapshotView`."""
        del route
        return ()

    def carrier(self, key: ResourceKey) -> ResourceKey:
        """See `SnapshotView`."""
        return ResourceKey(_ROUTE, route_of(key.name)) if key.type is _VIRTUAL_HOST else key

    def seen(self, touched: Iterable[ResourceKey]) -> Iterable[ResourceKey]:
        """See `SnapshotView`."""
        seen = dict.fromkeys(self.carrier(key) for key in touched)
        for key in seen:
            if key.type is _ROUTE:
                self._made.pop(key.name, None)
        return seen

    def _complete(self, resource: Resource) -> Resource:
        route = route_pb2.RouteConfiguration.FromString(resource.body.value)
        if not route.HasField("vhds"):
            return resource
        route.ClearField("vhds")
        digest = hashlib.blake2b(resource.version.encode(), digest_size=8)
        for name in sorted(self._world.virtual_hosts(resource.key.name)):
            host = self._world.find(_VIRTUAL_HOST, name)
            if host is not None:
                route.virtual_hosts.add().ParseFromString(host.body.value)
                digest.update(host.version.encode())
        made = Resource.of(_ROUTE, resource.key.name, route)
        return Resource(made.key, made.body, Version(digest.hexdigest()))
