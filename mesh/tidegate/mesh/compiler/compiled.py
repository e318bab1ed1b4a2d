"""The result of a compilation: resources in units, and the difference between two results.

A unit holds the resources that are compiled together: the clusters and endpoints of a host, the
listener and route configurations of a port, a virtual host, or what gRPC clients need to call a
host. `Units` keeps each unit with the values from which it was compiled, and compiles it again only
if one of them is another value. A unit that is the identical value in two results has not changed,
so the difference of two results costs only what differs.
"""

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.resources import (
    Change,
    ProxyKind,
    Resource,
    ResourceKey,
    Resources,
    ResourceType,
    difference,
)

__all__ = ["Compiled", "Made", "Unit", "UnitKey", "UnitKind", "Units"]

Made: TypeAlias = Mapping[ProxyKind, Iterable[Resource]]
"""The resources of a unit, by proxy kind."""


class UnitKind(enum.Enum):
    """What a unit is for."""

    HOST = "host"
    PORT = "port"
    VIRTUAL_HOST = "virtual host"
    CLIENT = "client"


UnitKey = tuple[UnitKind, str]
"""The key of a unit: its kind, and the name of the host or virtual host, or the port's number."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Resources that are compiled together.

    Attributes:
        resources: The resources by proxy kind and key.
    """

    resources: Mapping[ProxyKind, Mapping[ResourceKey, Resource]]

    @classmethod
    def of(cls, resources: Made) -> "Unit":
        """Sorts resources by key."""
        return cls(
            {
                proxy_kind: {resource.key: resource for resource in each}
                for proxy_kind, each in resources.items()
            }
        )


_NOTHING: Final[Mapping[ResourceKey, Resource]] = {}
_ORDER: Final = {each: index for index, each in enumerate(ResourceType)}


class Compiled:
    """All resources of a mesh; never changed after it is made.

    Args:
        units: The units.
        changed: The keys of the units that can differ from the result before.
        before: The stamp of the result before.
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
        """An object that identifies this result."""
        return self._stamp

    @property
    def resources(self) -> Mapping[ProxyKind, Resources]:
        """All resources by proxy kind. A look-up costs the same in a mesh of any size."""
        return self._resources

    def changed_from(self, previous: "Compiled") -> Mapping[ProxyKind, Change]:
        """The change from another result to this one, by proxy kind.

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


class Units:
    """The units of the latest compilation, and which of them changed since the last result."""

    def __init__(self) -> None:
        self._units: dict[UnitKey, Unit] = {}
        self._inputs: dict[UnitKey, tuple[object, ...]] = {}
        self._errors: dict[UnitKey, tuple[CompileError, ...]] = {}
        self._changed: set[UnitKey] = set()

    def compile(
        self,
        key: UnitKey,
        inputs: tuple[object, ...],
        make: Callable[[list[CompileError]], Made],
    ) -> None:
        """Compiles a unit, unless it was compiled from the same inputs.

        Args:
            key: The key of the unit.
            inputs: All values from which it is compiled.
            make: Makes its resources, and adds errors to a list.
        """
        # A comparison ends at once for identical values. Values that are equal and not identical
        # come from a file that was read again.
        if self._inputs.get(key) == inputs:
            return
        errors: list[CompileError] = []
        self._units[key] = Unit.of(make(errors))
        self._inputs[key] = inputs
        self._changed.add(key)
        if errors:
            self._errors[key] = tuple(errors)
        else:
            self._errors.pop(key, None)

    def remove(self, key: UnitKey) -> None:
        """Removes a unit, if it is there."""
        if self._units.pop(key, None) is not None:
            del self._inputs[key]
            self._errors.pop(key, None)
            self._changed.add(key)

    def remove_others(self, kind: UnitKind, names: Collection[str]) -> None:
        """Removes the units of a kind that have other names."""
        for key in [key for key in self._units if key[0] is kind and key[1] not in names]:
            self.remove(key)

    def errors(self) -> Iterable[CompileError]:
        """The errors of all units."""
        return (error for each in self._errors.values() for error in each)

    def result(self, last: Compiled | None) -> Compiled:
        """All units as one value.

        Args:
            last: The result before.
        """
        made = Compiled(dict(self._units), frozenset(self._changed), last and last.stamp)
        self._changed.clear()
        return made


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
    """The resources of one proxy kind, found through their units."""

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
    """The unit that has a resource, if any unit has it: `naming` makes the names."""
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
