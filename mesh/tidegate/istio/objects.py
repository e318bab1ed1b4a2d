"""All objects of a mesh as one value.

A change returns a new value, which shares with the old one each kind's mapping that stays the same.
So comparing identities finds what differs between two values.
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
    """Objects by name; immutable.

    Attributes:
        virtual_services: The VirtualServices by name.
        destination_rules: The DestinationRules by name.
        gateways: The Gateways by name.
        service_entries: The ServiceEntries by name.
        workload_entries: The WorkloadEntries by name.
    """

    virtual_services: Mapping[ObjectName, VirtualService] = field(default_factory=dict)
    destination_rules: Mapping[ObjectName, DestinationRule] = field(default_factory=dict)
    gateways: Mapping[ObjectName, Gateway] = field(default_factory=dict)
    service_entries: Mapping[ObjectName, ServiceEntry] = field(default_factory=dict)
    workload_entries: Mapping[ObjectName, WorkloadEntry] = field(default_factory=dict)

    @classmethod
    def of(cls, objects: Iterable[IstioObject]) -> Self:
        """Collects objects in the given order; of several with one name the last one counts."""
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
        """Returns the objects with these added; each replaces an object of its name."""
        changed: dict[str, dict[ObjectName, Any]] = {}
        for each in objects:
            view = _VIEWS[each.name.kind]
            changed.setdefault(view, dict(self._view(each.name.kind)))[each.name] = each
        return replace(self, **changed)

    def without(self, *names: ObjectName) -> Self:
        """Returns the objects without those of these names."""
        changed: dict[str, dict[ObjectName, Any]] = {}
        for name in names:
            view = _VIEWS[name.kind]
            changed.setdefault(view, dict(self._view(name.kind))).pop(name, None)
        return replace(self, **changed)

    def changed_from(self, before: Self) -> frozenset[ObjectName]:
        """Returns the names of objects that were added, removed, or are another value than before.

        A kind whose mapping is the identical value costs nothing.
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
    """Yields the names whose values are not identical.

    Where one mapping was made from the other, the names are the same in the same order. Comparing a
    thousand of them one by one takes a fraction of the time of looking each up.
    """
    if len(old) == len(new) and all(map(operator.is_, old, new)):
        yield from compress(new, map(operator.is_not, old.values(), new.values()))
    else:
        yield from (name for name, each in new.items() if old.get(name) is not each)
        yield from old.keys() - new.keys()
