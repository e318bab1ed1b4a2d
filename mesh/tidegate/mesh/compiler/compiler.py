"""The compiler: Istio objects and states of endpoints in, resources out; it compiles changes only.

The result is a function of the arguments; what the compiler keeps of the last call only saves work.
It keeps each unit of resources with the values from which it was compiled. If these values are the
same objects, the compiler reuses the unit: one comparison, and no protobuf. Most comparisons are
skipped too: where only VirtualServices changed, the compiler looks at no hosts but theirs.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TypeAlias

from tidegate.istio.names import Kind, ObjectName
from tidegate.istio.objects import IstioObjects
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler.clusters.host_resources import contradictions, host_resources
from tidegate.mesh.compiler.compiled import Compiled, Made, UnitKind, Units
from tidegate.mesh.compiler.errors import CompileError, CompileErrors
from tidegate.mesh.compiler.gateways.bindings import (
    BoundVirtualService,
    GatewayVirtualServices,
    MeshVirtualServices,
    VirtualHostKey,
)
from tidegate.mesh.compiler.gateways.merged_gateways import MergedGateway, MergedGateways
from tidegate.mesh.compiler.hosts.services import ServiceRegistryBuilder
from tidegate.mesh.compiler.hosts.upstreams import Upstream, Upstreams, UpstreamsBuilder
from tidegate.mesh.compiler.listeners import listener_resources
from tidegate.mesh.compiler.naming import virtual_host_name
from tidegate.mesh.compiler.proxyless import client_resources
from tidegate.mesh.compiler.routes.destinations import hosts_of
from tidegate.mesh.compiler.routes.virtual_hosts import virtual_host
from tidegate.mesh.compiler.settings import EndpointStates, MeshSettings
from tidegate.mesh.compiler.unsupported import unsupported
from tidegate.mesh.resources import ProxyKind

__all__ = ["Compiler"]

_VirtualServices: TypeAlias = Mapping[ObjectName, VirtualService]
_Upstreams: TypeAlias = Mapping[HostName, Upstream]


class Compiler:
    """Compiles the objects of a mesh, again and again.

    Args:
        settings: The settings of the whole mesh.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._registry = ServiceRegistryBuilder(settings)
        self._upstreams = UpstreamsBuilder(settings)
        self._at_gateways = GatewayVirtualServices(settings.proxy_namespace)
        self._in_mesh = MeshVirtualServices(settings.proxy_namespace)
        self._units = Units()
        self._merged_gateways = MergedGateways({}, {}, ())
        self._objects = IstioObjects()
        self._states: EndpointStates = {}
        self._last_upstreams: Upstreams | None = None
        self._last: Compiled | None = None

    @property
    def settings(self) -> MeshSettings:
        """The settings of the whole mesh."""
        return self._settings

    def compile(self, objects: IstioObjects, states: EndpointStates) -> Compiled:
        """Compiles the resources of a mesh.

        Args:
            objects: All objects.
            states: The states of endpoints; another mapping when any state changed.

        Raises:
            CompileErrors: Objects contradict each other, or name something that does not exist.
        """
        changed_objects = objects.changed_from(self._objects)
        _raise_unsupported(objects, changed_objects)
        virtual_services = objects.virtual_services
        registry = self._registry.build(objects)
        upstreams = self._upstreams.build(registry, objects.destination_rules)
        hosts_changed = upstreams is not self._last_upstreams
        if hosts_changed or not (states is self._states or states == self._states):
            self._compile_hosts(upstreams, states)
        changed = {name for name in changed_objects if name.kind is Kind.VIRTUAL_SERVICE}
        touched_hosts = self._in_mesh.update(virtual_services, changed)
        gateways_changed = objects.gateways is not self._objects.gateways
        if gateways_changed:
            self._compile_ports(objects)
            changed.update(virtual_services)
        touched = self._at_gateways.update(virtual_services, changed, self._merged_gateways)
        if hosts_changed or gateways_changed:
            touched = touched.union(self._at_gateways.keys())
        self._compile_virtual_hosts(touched, virtual_services, upstreams.by_host)
        if hosts_changed:
            self._units.remove_others(UnitKind.CLIENT, upstreams.by_host)
        self._compile_clients(
            upstreams.by_host if hosts_changed or touched_hosts is None else touched_hosts,
            virtual_services,
            upstreams.by_host,
        )
        self._objects, self._states, self._last_upstreams = objects, states, upstreams
        self._raise_errors((*registry.errors, *upstreams.errors))
        self._last = self._units.result(self._last)
        return self._last

    def _compile_hosts(self, upstreams: Upstreams, states: EndpointStates) -> None:
        for host, upstream in upstreams.by_host.items():
            self._units.compile(
                (UnitKind.HOST, host),
                (upstream, *map(states.get, upstream.service.addresses)),
                partial(_host, upstream, states),
            )
        self._units.remove_others(UnitKind.HOST, upstreams.by_host)

    def _compile_ports(self, objects: IstioObjects) -> None:
        self._merged_gateways = self._merged_gateways.updated(objects.gateways.values())
        by_port: dict[str, list[MergedGateway]] = defaultdict(list)
        for merged_gateway in self._merged_gateways.by_name.values():
            by_port[str(merged_gateway.port)].append(merged_gateway)
        for port, merged_gateways in by_port.items():
            self._units.compile(
                (UnitKind.PORT, port),
                tuple(merged_gateways),
                partial(_port, merged_gateways, self._settings),
            )
        self._units.remove_others(UnitKind.PORT, by_port)

    def _compile_virtual_hosts(
        self,
        keys: Iterable[VirtualHostKey],
        virtual_services: _VirtualServices,
        upstreams: _Upstreams,
    ) -> None:
        for key in keys:
            unit = (UnitKind.VIRTUAL_HOST, virtual_host_name(*key))
            merged_gateway = self._merged_gateways.by_name.get(key.merged_gateway)
            bound = self._at_gateways.at(key, virtual_services)
            if merged_gateway is None or bound is None:
                self._units.remove(unit)
                continue
            named = (host for each in bound for host in hosts_of(each.virtual_service))
            self._units.compile(
                unit,
                (merged_gateway, bound, *map(upstreams.get, named)),
                partial(_virtual_host, merged_gateway, key.domain, bound, upstreams),
            )

    def _compile_clients(
        self, hosts: Iterable[HostName], virtual_services: _VirtualServices, upstreams: _Upstreams
    ) -> None:
        for host in hosts:
            upstream = upstreams.get(host)
            if upstream is None:
                continue
            name = self._in_mesh.for_host(host)
            virtual_service = None if name is None else virtual_services[name]
            named = hosts_of(virtual_service) if virtual_service else ()
            self._units.compile(
                (UnitKind.CLIENT, host),
                (upstream, virtual_service, *map(upstreams.get, named)),
                partial(_client, upstream, virtual_service, upstreams),
            )

    def _raise_errors(self, found: Iterable[CompileError]) -> None:
        errors = {
            *found,
            *self._merged_gateways.errors,
            *self._at_gateways.errors(),
            *self._in_mesh.errors(),
            *self._units.errors(),
        }
        if errors:
            raise CompileErrors(tuple(sorted(errors, key=_order)))


def _order(error: CompileError) -> tuple[str, str, str]:
    return str(error.object), error.path, error.reason


def _raise_unsupported(objects: IstioObjects, changed: Iterable[ObjectName]) -> None:
    errors = [
        CompileError(name, each.path, each.problem, each.fix)
        for name in changed
        if name in objects
        for each in unsupported(objects[name])
    ]
    if errors:
        raise CompileErrors(tuple(sorted(errors, key=_order)))


def _host(upstream: Upstream, states: EndpointStates, errors: list[CompileError]) -> Made:
    errors.extend(contradictions(upstream))
    return host_resources(upstream, states)


def _port(
    merged_gateways: Iterable[MergedGateway], settings: MeshSettings, _errors: list[CompileError]
) -> Made:
    return {ProxyKind.ENVOY: listener_resources(merged_gateways, settings)}


def _virtual_host(
    merged_gateway: MergedGateway,
    domain: str,
    bound: Iterable[BoundVirtualService],
    upstreams: _Upstreams,
    errors: list[CompileError],
) -> Made:
    return {ProxyKind.ENVOY: virtual_host(merged_gateway, domain, bound, upstreams, errors)}


def _client(
    upstream: Upstream,
    virtual_service: VirtualService | None,
    upstreams: _Upstreams,
    errors: list[CompileError],
) -> Made:
    return {ProxyKind.GRPC: tuple(client_resources(upstream, virtual_service, upstreams, errors))}
