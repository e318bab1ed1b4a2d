"""All objects of a mesh as one value.

A change makes a new value that shares with the old one what is the same, kind by kind, so that what
changed between two can be found by comparing identities.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, Self

from tidegate.istio.destination_rule import DestinationRule
from tidegate.istio.gateway import Gateway
from tidegate.istio.names import Kind, ObjectName
from tidegate.istio.service_entry import ServiceEntry, WorkloadEntry
from tidegate.istio.virtual_service import VirtualService

__all__ = ["CLASSES", "IstioObject", "IstioObjects"]

IstioObject = VirtualService | DestinationRule | Gateway | ServiceEntry | WorkloadEntry

CLASSES: Mapping[Kind, type[IstioObject]] = {
    Kind.VIRTUAL_SERVICE: VirtualService,
    Kind.DESTINATION_RULE: DestinationRule,
    Kind.GATEWAY: Gateway,
    Kind.SERVICE_ENTRY: ServiceEntry,
    Kind.WORKLOAD_ENTRY: WorkloadEntry,
}

_VIEWS = {
    Kind.VIRTUAL_SERVICE: "virtual_services",
    Kind.DESTINATION_RULE: "destination_rules",
    Kind.GATEWAY: "gateways",
    Kind.SERVICE_ENTRY: "service_entries",
    Kind.WORKLOAD_ENTRY: "workload_entries",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioObjects(Mapping[ObjectName, IstioObject]):
    """Objects by name; never changed once made.

    Attributes:
        virtual_services: those of one kind, and so on.
        destination_rules: see there.
        gateways: see there.
        service_entries: see there.
        workload_entries: see there.
    """

    virtual_services: Mapping[ObjectName, VirtualService] = field(default_factory=dict)
    destination_rules: Mapping[ObjectName, DestinationRule] = field(default_factory=dict)
    gateways: Mapping[ObjectName, Gateway] = field(default_factory=dict)
    service_entries: Mapping[ObjectName, ServiceEntry] = field(default_factory=dict)
    workload_entries: Mapping[ObjectName, WorkloadEntry] = field(default_factory=dict)

    @classmethod
    def of(cls, objects: Iterable[IstioObject]) -> Self:
        """Gathers objects, in the order given; the last of a name counts."""
        views: dict[str, dict[ObjectName, Any]] = {view: {} for view in _VIEWS.values()}
        for each in objects:
            views[_VIEWS[each.name.kind]][each.name] = each
        return cls(**views)

    def __getitem__(self, name: ObjectName) -> IstioObject:
        found: IstioObject = self._view(name.kind)[name]
        return found

    def __iter__(self) -> Iterator[ObjectName]:
        for kind in Kind:
            yield from self._view(kind)

    def __len__(self) -> int:
        return sum(len(self._view(kind)) for kind in Kind)

    def with_(self, *objects: IstioObject) -> Self:
        """With these objects, each instead of the one of its name if there is one."""
        changed: dict[str, dict[ObjectName, Any]] = {}
        for each in objects:
            view = _VIEWS[each.name.kind]
            changed.setdefault(view, dict(self._view(each.name.kind)))[each.name] = each
        return replace(self, **changed)

    def without(self, *names: ObjectName) -> Self:
        """Without the objects of these names."""
        changed: dict[str, dict[ObjectName, Any]] = {}
        for name in names:
            view = _VIEWS[name.kind]
            changed.setdefault(view, dict(self._view(name.kind))).pop(name, None)
        return replace(self, **changed)

    def changed_from(self, before: Self) -> frozenset[ObjectName]:
        """Names of objects that are new, gone, or not the identical value they were.

        Costs nothing for a kind of which nothing changed since one value was made of the other.
        """
        changed: set[ObjectName] = set()
        for kind in Kind:
            old, new = before._view(kind), self._view(kind)
            if old is not new:
                changed.update(_changed(old, new))
        return frozenset(changed)

    def _view(self, kind: Kind) -> Mapping[ObjectName, Any]:
        view: Mapping[ObjectName, Any] = getattr(self, _VIEWS[kind])
        return view


def _changed(old: Mapping[ObjectName, Any], new: Mapping[ObjectName, Any]) -> Iterator[ObjectName]:
    """Names whose values are not identical.

    Where one mapping was made of the other the names are the same in the same order, and comparing
    a thousand of them one by one takes a fraction of looking each up.
    """
    if len(old) == len(new) and all(map(operator.is_, old, new)):
        yield from compress(new, map(operator.is_not, old.values(), new.values()))
    else:
        yield from (name for name, each in new.items() if old.get(name) is not each)
        yield from old.keys() - new.keys()
