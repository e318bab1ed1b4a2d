"""Resource snapshots: the resources to serve, as proxies see them.

A `ResourceSnapshot` holds the resources of one proxy kind by type and name. Two things differ from
what the compiler made:

- The version of endpoints includes the version of their cluster. Envoy warms a changed cluster only
  when its endpoints arrive again, changed or not (Envoy, "xDS protocol", resource warming). With a
  new version, the same endpoints are sent again under a new cluster. The same happens
  if a proxy reconnects before they arrive, or rejects them (docs/mesh-ads.md, "When a proxy rejects
  an update").
- An Envoy that speaks state of the world cannot subscribe to single virtual hosts (VHDS). It gets
  an `InlinedSnapshot`, in which each route configuration contains its virtual hosts.

The cost of a change depends on the size of the change only.
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
    """A snapshot as the streams of one proxy kind and xDS variant see it."""

    @property
    def loaded(self) -> bool:
        """Whether the resources to serve are known."""
        ...

    def find(self, type: ResourceType, name: str) -> Resource | None:  # noqa: A002
        """Returns the resource of that name, with its version on the wire."""
        ...

    def names(self, type: ResourceType) -> Collection[str]:  # noqa: A002
        """Returns the names of all resources of a type."""
        ...

    def virtual_hosts(self, route: str) -> Collection[str]:
        """Returns the virtual hosts that are sent separately from their route configuration."""
        ...

    def carrier(self, key: ResourceKey) -> ResourceKey:
        """Returns the resource that carries this one on the wire, usually the resource itself."""
        ...

    def visible_keys(self, changed: Iterable[ResourceKey]) -> Iterable[ResourceKey]:
        """Returns the keys that differ in this view after resources of the snapshot changed."""
        ...


def route_of(virtual_host: str) -> str:
    """Returns the route configuration of a virtual host named ``ROUTE/DOMAIN``."""
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
        """The resources that were put in, as a live, read-only view."""
        return MappingProxyType(self._served)

    def apply(self, change: Change) -> list[ResourceKey]:
        """Applies a change.

        Returns:
            Each key whose resource has changed on the wire, once.
        """
        self.loaded = True
        changed = dict.fromkeys(each.key for each in change.put if self._put(each))
        changed |= dict.fromkeys(key for key in change.delete if self._delete(key))
        for key in list(changed):
            # Endpoints that outlive their cluster keep their last version.
            if key.type in {_CLUSTER, _ENDPOINT} and key in self._served:
                changed |= dict.fromkeys(self._update_endpoints_version(key.name))
        return list(changed)

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

    def visible_keys(self, changed: Iterable[ResourceKey]) -> Iterable[ResourceKey]:
        """See `SnapshotView`."""
        return changed

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

    def _update_endpoints_version(self, name: str) -> tuple[ResourceKey, ...]:
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
    """A view in which route configurations contain their virtual hosts. Implements `SnapshotView`.

    Only route configurations that use VHDS differ from the snapshot. The view builds each of them
    when it is read, and keeps it until it changes.

    Args:
        snapshot: The snapshot to read from.
    """

    def __init__(self, snapshot: ResourceSnapshot) -> None:
        self._snapshot = snapshot
        self._inlined: dict[str, Resource] = {}

    @property
    def loaded(self) -> bool:
        """See `SnapshotView`."""
        return self._snapshot.loaded

    def find(self, type: ResourceType, name: str) -> Resource | None:  # noqa: A002
        """See `SnapshotView`."""
        if type is _VIRTUAL_HOST:
            return None
        found = self._snapshot.find(type, name)
        if type is not _ROUTE or found is None:
            return found
        if name not in self._inlined:
            self._inlined[name] = self._inline(found)
        return self._inlined[name]

    def names(self, type: ResourceType) -> Collection[str]:  # noqa: A002
        """See `SnapshotView`."""
        return () if type is _VIRTUAL_HOST else self._snapshot.names(type)

    def virtual_hosts(self, route: str) -> Collection[str]:
        """See `SnapshotView`."""
        del route
        return ()

    def carrier(self, key: ResourceKey) -> ResourceKey:
        """See `SnapshotView`."""
        return ResourceKey(_ROUTE, route_of(key.name)) if key.type is _VIRTUAL_HOST else key

    def visible_keys(self, changed: Iterable[ResourceKey]) -> Iterable[ResourceKey]:
        """See `SnapshotView`."""
        visible = dict.fromkeys(self.carrier(key) for key in changed)
        for key in visible:
            if key.type is _ROUTE:
                self._inlined.pop(key.name, None)
        return visible

    def _inline(self, resource: Resource) -> Resource:
        route = route_pb2.RouteConfiguration.FromString(resource.body.value)
        if not route.HasField("vhds"):
            return resource
        route.ClearField("vhds")
        digest = hashlib.blake2b(resource.version.encode(), digest_size=8)
        for name in sorted(self._snapshot.virtual_hosts(resource.key.name)):
            host = self._snapshot.find(_VIRTUAL_HOST, name)
            if host is not None:
                route.virtual_hosts.add().ParseFromString(host.body.value)
                digest.update(host.version.encode())
        inlined = Resource.of(_ROUTE, resource.key.name, route)
        return Resource(inlined.key, inlined.body, Version(digest.hexdigest()))
