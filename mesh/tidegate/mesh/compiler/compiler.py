"""The compiler: Istio objects and endpoints' states to resources, anew only where they differ.

It is a function of its arguments; what it remembers of the last call only saves work. Every unit
is kept with the very values of which it was made. As long as they are the identical values, the
unit is the identical unit, which costs a comparison and no protobuf. And most comparisons are not
made either: where only VirtualServices changed, no host is looked at but theirs.
"""

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import compress
from typing import TypeAlias

from tidegate.mesh.compiler.clusters.host_resources.host_resources import (
    contradictions,
    host_resources,
)
from tidegate.mesh.compiler.routes.envoy_routes.destinations import destinations_of
from tidegate.mesh.compiler.routes.envoy_routes.virtual_hosts import Bound, virtual_host

from tidegate.istio.names import ObjectName
from tidegate.istio.objects import IstioObjects
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler.compiled import Compiled, UnitKind
from tidegate.mesh.compiler.errors import CompileError, CompileErrors
from tidegate.mesh.compiler.gateways.bindings import GatewayBindings, MeshBindings, Place
from tidegate.mesh.compiler.gateways.merged_gateways import MergedGateway, MergedGateways
from tidegate.mesh.compiler.hosts.services import ServicesBuilder
from tidegate.mesh.compiler.hosts.upstreams import Target, Targets, TargetsBuilder
from tidegate.mesh.compiler.listeners import listener_resources
from tidegate.mesh.compiler.naming import virtual_host_name
from tidegate.mesh.compiler.proxyless import client_resources
from tidegate.mesh.compiler.settings import EndpointStates, MeshSettings
from tidegate.mesh.compiler.units import Units
from tidegate.mesh.resources import ProxyKind, Resource

__all__ = ["Compiler"]

_Services: TypeAlias = Mapping[ObjectName, VirtualService]
_Targets: TypeAlias = Mapping[HostName, Target]
_Made: TypeAlias = Mapping[ProxyKind, Iterable[Resource]]


class Compiler:
    """Compiles the objects of a mesh, again and again.

    Args:
        settings: what holds for the whole mesh.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._services = ServicesBuilder(settings)
        self._targets = TargetsBuilder(settings)
        self._gateways = GatewayBindings(settings.proxy_namespace)
        self._mesh = MeshBindings(settings.proxy_namespace)
        self._units = Units()
        self._entrances = MergedGateways({}, {}, ())
        self._objects = IstioObjects()
        self._states: EndpointStates = {}
        self._known: Targets | None = None
        self._last: Compiled | None = None

    @property
    def settings(self) -> MeshSettings:
        """What holds for the whole mesh."""
        return self._settings

    def compile(self, objects: IstioObjects, states: EndpointStates) -> Compiled:
        """Makes the resources of a mesh.

        Args:
            objects: all objects.
            states: what is known of the endpoints; another mapping when anything changed.

        Raises:
            CompileErrors: objects contradict each other, or name what is not there.
        """
        services = objects.virtual_services
        hosts = self._services.build(objects)
        targets = self._targets.build(hosts, objects.destination_rules)
        everywhere = targets is not self._known
        if everywhere or not (states is self._states or states == self._states):
            self._compile_hosts(targets, states)
        changed = _changed(self._objects.virtual_services, services)
        touched_hosts = self._mesh.update(services, changed)
        other_gateways = objects.gateways is not self._objects.gateways
        if other_gateways:
            self._compile_ports(objects)
            changed.update(services)
        touched = self._gateways.update(services, changed, self._entrances)
        if everywhere or other_gateways:
            touched = touched.union(self._gateways.places())
        self._compile_virtual_hosts(touched, services, targets.by_host)
        if everywhere:
            self._units.keep(UnitKind.CLIENT, targets.by_host)
        self._compile_clients(
            targets.by_host if everywhere or touched_hosts is None else touched_hosts,
            services,
            targets.by_host,
        )
        self._objects, self._states, self._known = objects, states, targets
        self._raise_errors((*hosts.errors, *targets.errors))
        self._last = self._units.compiled(self._last)
        return self._last

    def _compile_hosts(self, targets: Targets, states: EndpointStates) -> None:
        for host, target in targets.by_host.items():
            self._units.offer(
                (UnitKind.HOST, host),
                (target, *map(states.get, target.service.addresses)),
                partial(_host, target, states),
            )
        self._units.keep(UnitKind.HOST, targets.by_host)

    def _compile_ports(self, objects: IstioObjects) -> None:
        self._entrances = self._entrances.updated(objects.gateways.values())
        by_port: dict[str, list[MergedGateway]] = defaultdict(list)
        for entrance in self._entrances.by_name.values():
            by_port[str(entrance.port)].append(entrance)
        for port, entrances in by_port.items():
            self._units.offer(
                (UnitKind.PORT, port), tuple(entrances), partial(_port, entrances, self._settings)
            )
        self._units.keep(UnitKind.PORT, by_port)

    def _compile_virtual_hosts(
        self, places: Iterable[Place], services: _Services, targets: _Targets
    ) -> None:
        for place in places:
            key = (UnitKind.VIRTUAL_HOST, virtual_host_name(*place))
            entrance = self._entrances.by_name.get(place.entrance)
            bound = self._gateways.at(place, services)
            if entrance is None or bound is None:
                self._units.remove(key)
                continue
            named = (host for each in bound for host in destinations_of(each.service))
            self._units.offer(
                key,
                (entrance, bound, *map(targets.get, named)),
                partial(_virtual_host, entrance, place.domain, bound, targets),
            )

    def _compile_clients(
        self, hosts: Iterable[HostName], services: _Services, targets: _Targets
    ) -> None:
        for host in hosts:
            target = targets.get(host)
            if target is None:
                continue
            name = self._mesh.service(host)
            service = None if name is None else services[name]
            named = destinations_of(service) if service else ()
            self._units.offer(
                (UnitKind.CLIENT, host),
                (target, service, *map(targets.get, named)),
                partial(_client, target, service, targets),
            )

    def _raise_errors(self, found: Iterable[CompileError]) -> None:
        errors = {
            *found,
            *self._entrances.errors,
            *self._gateways.errors(),
            *self._mesh.errors(),
            *self._units.errors(),
        }
        if errors:
            raise CompileErrors(
                tuple(sorted(errors, key=lambda each: (str(each.object), each.path, each.reason)))
            )


def _host(target: Target, states: EndpointStates, errors: list[CompileError]) -> _Made:
    errors.extend(contradictions(target))
    return host_resources(target, states)


def _port(
    entrances: Iterable[MergedGateway], settings: MeshSettings, _errors: list[CompileError]
) -> _Made:
    return {ProxyKind.ENVOY: listener_resources(entrances, settings)}


def _virtual_host(
    entrance: MergedGateway,
    domain: str,
    bound: Iterable[Bound],
    targets: _Targets,
    errors: list[CompileError],
) -> _Made:
    return {ProxyKind.ENVOY: virtual_host(entrance, domain, bound, targets, errors)}


def _client(
    target: Target,
    service: VirtualService | None,
    targets: _Targets,
    errors: list[CompileError],
) -> _Made:
    return {ProxyKind.GRPC: tuple(client_resources(target, service, targets, errors))}


def _changed(before: _Services, now: _Services) -> set[ObjectName]:
    """The names under which something else stands, or nothing any more.

    Of two that were made of each other it compares identities only, without a look at a name.
    """
    if before is now:
        return set()
    if len(before) == len(now) and all(map(operator.is_, before, now)):
        return set(compress(now, map(operator.is_not, before.values(), now.values())))
    gone = before.keys() - now.keys()
    return gone.union(name for name, each in now.items() if before.get(name) is not each)
