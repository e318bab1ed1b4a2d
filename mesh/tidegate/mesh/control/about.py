"""Which objects are about which host, so that a change of one host looks at no other."""

from collections.abc import Iterable, Iterator

from tidegate.istio import IstioObject, IstioObjects, ObjectName
from tidegate.istio.destination_rule import DestinationRule
from tidegate.istio.service_entry import ServiceEntry
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService

__all__ = ["HostIndex"]


class HostIndex:
    """Objects by the hosts that they define, have rules for, or send requests to."""

    def __init__(self) -> None:
        self._objects: dict[HostName, dict[ObjectName, None]] = {}
        self._short: dict[str, dict[HostName, None]] = {}

    def add(self, objects: Iterable[IstioObject]) -> None:
        """Takes objects in."""
        for item in objects:
            for host in _hosts(item):
                self._objects.setdefault(host, {})[item.name] = None
                self._short.setdefault(host.partition(".")[0], {})[host] = None

    def remove(self, objects: Iterable[IstioObject]) -> None:
        """Forgets objects."""
        for item in objects:
            for host in _hosts(item):
                names = self._objects.get(host, {})
                names.pop(item.name, None)
                if not names:
                    self._objects.pop(host, None)
                    self._short.get(host.partition(".")[0], {}).pop(host, None)

    def about(self, host: str, objects: IstioObjects) -> IstioObjects:
        """Those of all objects that are about a host.

        Args:
            host: its full name, or the first part of it; what fits no single host gets all objects,
                for whoever has to say what is wrong with the name.
            objects: all objects.
        """
        meant = [HostName(host)] if host in self._objects else [*self._short.get(host, ())]
        if len(meant) != 1:
            return objects
        return IstioObjects.of(objects[name] for name in self._objects[meant[0]])


def _hosts(item: IstioObject) -> Iterator[HostName]:
    match item:
        case ServiceEntry():
            yield from item.hosts
        case DestinationRule():
            yield item.host
        case VirtualService():
            yield from dict.fromkeys(
                each.destination.host for rule in item.http for each in rule.route
            )
