"""What objects are compiled to, and what is different between two of them.

Resources are kept in units: the clusters and endpoints of a host, the listener and route
configurations of a port, a virtual host, what gRPC clients get to find a host. A unit that is the
identical value in two compilations has not changed, so a difference costs what differs.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.mesh.resources import (
    Change,
    ProxyKind,
    Resource,
    ResourceKey,
    Resources,
    ResourceType,
    difference,
)

__all__ = ["Compiled", "Unit", "UnitKey", "UnitKind"]


class UnitKind(enum.Enum):
    """What is compiled as one."""

    HOST = "host"
    PORT = "port"
    VIRTUAL_HOST = "virtual host"
    CLIENT = "client"


UnitKey = tuple[UnitKind, str]
"""A unit: the host, the port's number, the virtual host's name, or the host that is dialled."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Resources that are made together.

    Attributes:
        resources: them by proxy kind and key.
    """

    resources: Mapping[ProxyKind, Mapping[ResourceKey, Resource]]

    @classmethod
    def of(cls, resources: Mapping[ProxyKind, Iterable[Resource]]) -> "Unit":
        """Gathers resources."""
        return cls(
            {
                proxy_kind: {resource.key: resource for resource in each}
                for proxy_kind, each in resources.items()
            }
        )


_NOTHING: Final[Mapping[ResourceKey, Resource]] = {}
_ORDER: Final = {each: index for index, each in enumerate(ResourceType)}


class Compiled:
    """All resources of a mesh; never changed once made.

    Args:
        units: the resources, by what they were made of.
        changed: the units in which it can differ from the compilation before it.
        before: the stamp of that one.
    """

    def __init__(
        self, units: Mapping[UnitKey, Unit], changed: frozenset[UnitKey], before: object
    ) -> None:
        self._units = units
        self._changed = changed
        self._before = before
        self._stamp = object()
        self._resources = {proxy_kind: _Resources(units, proxy_kind) for proxy_kind in ProxyKind}

    @property
    def stamp(self) -> object:
        """What this compilation is recognised by."""
        return self._stamp

    @property
    def resources(self) -> Mapping[ProxyKind, Resources]:
        """All resources of each proxy kind. Looking one up costs the same in every mesh."""
        return self._resources

    def changed_from(self, previous: "Compiled") -> Mapping[ProxyKind, Change]:
        """The step from another compilation to this one, for each proxy kind.

        Additions stand in the order of `ResourceType`.
        """
        if previous is self:
            keys: Iterable[UnitKey] = ()
        elif previous.stamp is self._before:
            keys = self._changed
        else:
            keys = self._units.keys() | previous._units.keys()
        differing = [key for key in keys if self._units.get(key) is not previous._units.get(key)]
        return {
            proxy_kind: _difference(previous._units, self._units, differing, proxy_kind)
            for proxy_kind in ProxyKind
        }


def _difference(
    before: Mapping[UnitKey, Unit],
    after: Mapping[UnitKey, Unit],
    keys: Iterable[UnitKey],
    proxy_kind: ProxyKind,
) -> Change:
    old: dict[ResourceKey, Resource] = {}
    new: dict[ResourceKey, Resource] = {}
    for key in keys:
        if key in before:
            old.update(before[key].resources.get(proxy_kind, _NOTHING))
        if key in after:
            new.update(after[key].resources.get(proxy_kind, _NOTHING))
    names = sorted(old.keys() | new.keys(), key=lambda key: (_ORDER[key.type], key.name))
    return difference(old, new, names)


class _Resources(Mapping[ResourceKey, Resource]):
    """The resources of one proxy kind, found through the units that they are in."""

    def __init__(self, units: Mapping[UnitKey, Unit], proxy_kind: ProxyKind) -> None:
        self._units = units
        self._proxy_kind = proxy_kind

    def __getitem__(self, key: ResourceKey) -> Resource:
        unit = self._units[_unit_of(key, self._proxy_kind)]
        return unit.resources[self._proxy_kind][key]

    def __iter__(self) -> Iterator[ResourceKey]:
        for unit in self._units.values():
            yield from unit.resources.get(self._proxy_kind, _NOTHING)

    def __len__(self) -> int:
        return sum(
            len(unit.resources.get(self._proxy_kind, _NOTHING)) for unit in self._units.values()
        )


def _unit_of(key: ResourceKey, proxy_kind: ProxyKind) -> UnitKey:
    """The unit that has a resource, if anything has it; names are as `naming` makes them."""
    match key.type:
        case ResourceType.CLUSTER | ResourceType.ENDPOINT:
            return UnitKind.HOST, key.name.rpartition("|")[2]
        case ResourceType.SCOPED_ROUTE | ResourceType.VIRTUAL_HOST:
            return UnitKind.VIRTUAL_HOST, key.name
        case ResourceType.LISTENER if proxy_kind is ProxyKind.ENVOY:
            return UnitKind.PORT, key.name.rpartition("_")[2]
        case ResourceType.ROUTE if proxy_kind is ProxyKind.ENVOY:
            return UnitKind.PORT, key.name.split(".")[1] if "." in key.name else ""
        case ResourceType.LISTENER:
            return UnitKind.CLIENT, key.name.rpartition(":")[0]
        case _:
            return UnitKind.CLIENT, key.name.rpartition("|")[2]
