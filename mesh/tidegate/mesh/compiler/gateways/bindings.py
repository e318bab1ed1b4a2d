"""Which VirtualServices hold where: at gateways by entrance and domain, in the mesh by host.

Both are kept up to date VirtualService by VirtualService, and tell what a change touches.

Several VirtualServices may route one domain of a gateway. They stand in istiod's order: by the
server that they met, then those that their namespace keeps to itself, then by age. Files have no
age; istiod orders objects of the same age by name and then by namespace, and so do these.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from tidegate.mesh.compiler.routes.envoy_routes.virtual_hosts import Bound

from tidegate.istio.names import MESH, ObjectName
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.gateways.merged_gateways import Binding, MergedGateways, bind
from tidegate.mesh.compiler.naming import covers, is_wildcard
from tidegate.mesh.compiler.settings import OWN_NAMESPACE

__all__ = ["GatewayBindings", "MeshBindings", "Place"]

_Services: TypeAlias = Mapping[ObjectName, VirtualService]


class Place(NamedTuple):
    """A virtual host.

    Attributes:
        entrance: its route configuration.
        domain: what clients ask for.
    """

    entrance: str
    domain: str


class GatewayBindings:
    """The VirtualServices at gateways.

    Args:
        namespace: the namespace in which gateways' proxies live.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._at: dict[Place, dict[ObjectName, tuple[Binding, ...]]] = {}
        self._places: dict[ObjectName, tuple[Place, ...]] = {}
        self._domains: dict[str, set[str]] = defaultdict(set)
        self._silent: set[Place] = set()
        self._errors: dict[ObjectName, tuple[CompileError, ...]] = {}

    def update(
        self, services: _Services, changed: Iterable[ObjectName], entrances: MergedGateways
    ) -> frozenset[Place]:
        """Takes changed VirtualServices; if entrances changed, all of them.

        Returns:
            The virtual hosts that are touched.
        """
        touched: set[Place] = set()
        for name in changed:
            touched.update(self._unbind(name))
            if name in services:
                touched.update(self._bind(services[name], entrances))
        silent = set(self._silent_places(entrances))
        touched |= silent ^ self._silent
        self._silent = silent
        return frozenset(touched)

    def places(self) -> Iterable[Place]:
        """All virtual hosts."""
        return self._at.keys() | self._silent

    def at(self, place: Place, services: _Services) -> tuple[Bound, ...] | None:
        """The VirtualServices of a virtual host; nothing where there is no such virtual host."""
        bound = self._at.get(place)
        if bound is None:
            return () if place in self._silent else None
        found = [(binding, services[name]) for name, each in bound.items() for binding in each]
        return tuple(
            Bound(service, binding.gateway, binding.redirects)
            for binding, service in sorted(found, key=lambda each: _precedence(*each))
        )

    def errors(self) -> Iterator[CompileError]:
        """What is wrong with the gateways that VirtualServices name."""
        return (error for each in self._errors.values() for error in each)

    def _unbind(self, name: ObjectName) -> tuple[Place, ...]:
        places = self._places.pop(name, ())
        for place in places:
            del self._at[place][name]
            if not self._at[place]:
                del self._at[place]
                self._domains[place.entrance].discard(place.domain)
        self._errors.pop(name, None)
        return places

    def _bind(self, service: VirtualService, entrances: MergedGateways) -> tuple[Place, ...]:
        bound, errors = bind(service, entrances, self._namespace)
        places = tuple(Place(*where) for where in bound)
        for place, bindings in zip(places, bound.values(), strict=True):
            self._at.setdefault(place, {})[service.name] = bindings
            self._domains[place.entrance].add(place.domain)
        self._places[service.name] = places
        if errors:
            self._errors[service.name] = errors
        return places

    def _silent_places(self, entrances: MergedGateways) -> Iterator[Place]:
        """Virtual hosts without routes: those that redirect, or the only one of an entrance.

        With scopes an entrance needs none to listen.
        """
        for name, entrance in entrances.by_name.items():
            spoken = self._domains.get(name, set())
            needs_one = not (spoken or entrance.scoped)
            for domain in entrance.redirected - spoken or (("*",) if needs_one else ()):
                yield Place(name, domain)


class MeshBindings:
    """The VirtualServices for clients inside the mesh.

    Args:
        namespace: the namespace in which clients count as living.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._at: dict[HostName, set[ObjectName]] = {}
        self._contested: set[HostName] = set()
        self._hosts: dict[ObjectName, tuple[HostName, ...]] = {}

    def update(
        self, services: _Services, changed: Iterable[ObjectName]
    ) -> frozenset[HostName] | None:
        """Takes changed VirtualServices.

        Returns:
            The hosts that are touched; nothing if any can be.
        """
        touched: set[HostName] = set()
        for name in changed:
            for host in self._hosts.pop(name, ()):
                touched.add(host)
                self._at[host].discard(name)
            service = services.get(name)
            if service is not None and self._counts(service):
                self._hosts[name] = service.hosts
                for host in service.hosts:
                    touched.add(host)
                    self._at.setdefault(host, set()).add(name)
        for host in touched:
            if not self._at[host]:
                del self._at[host]
            several = len(self._at.get(host, ())) > 1
            (self._contested.add if several else self._contested.discard)(host)
        return None if any(map(is_wildcard, touched)) else frozenset(touched)

    def service(self, host: HostName) -> ObjectName | None:
        """The VirtualService for a host: the one for the very host, else for the longest ``*``."""
        found = self._at.get(host)
        if found is None:
            wildcards = (each for each in self._at if is_wildcard(each) and covers(each, host))
            longest = max(wildcards, key=len, default=None)
            found = self._at[longest] if longest is not None else set()
        return min(found, default=None, key=_order)

    def errors(self) -> Iterator[CompileError]:
        """Hosts of which several VirtualServices speak; only at gateways are they put together."""
        for host in self._contested:
            first, *others = sorted(self._at[host], key=_order)
            for other in others:
                yield CompileError(
                    other,
                    "spec.hosts",
                    f"{first} routes {host} for gateway {MESH} too",
                    "write all routes of a host in one object",
                )

    def _counts(self, service: VirtualService) -> bool:
        visible = service.export_to != OWN_NAMESPACE or service.name.namespace == self._namespace
        return visible and MESH in service.gateways


def _precedence(binding: Binding, service: VirtualService) -> tuple[int, bool, str, str]:
    name = service.name
    return binding.position, service.export_to != OWN_NAMESPACE, name.name, name.namespace


def _order(name: ObjectName) -> tuple[str, str]:
    return name.name, name.namespace
