"""The mesh as rules look at it: hosts with their endpoints, routes, and the policies of each.

Hosts, subsets, policies and ports are resolved by the compiler's own functions. One thing differs:
the compiler serves the proxies of one namespace, and lint looks at the objects of all namespaces.

The endpoints of a host are unknown if no object holds any: they are WorkloadEntries that are made
while servers run, or the host is a Service of Kubernetes. Lint says nothing about them.
"""

import datetime as dt
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tidegate.istio.destination_rule import ClientTls, DestinationRule, Subset
from tidegate.istio.gateway import Gateway
from tidegate.istio.names import DOMAIN, MESH
from tidegate.istio.objects import IstioObjects
from tidegate.istio.reading.documents import Ignored
from tidegate.istio.service_entry import ServiceEntry, ServicePort, Workload
from tidegate.istio.shapes import GatewayName, HostName, SubsetName
from tidegate.istio.virtual_service import Destination, HttpRoute, VirtualService
from tidegate.mesh.compiler.gateways.bindings import order_of
from tidegate.mesh.compiler.gateways.merged_gateways import gateway_name
from tidegate.mesh.compiler.hosts.services import (
    WorkloadSelection,
    entries_by_host,
    has_labels,
    ports_of,
)
from tidegate.mesh.compiler.hosts.upstreams import (
    PolicyLayer,
    deciding_rules,
    policy_layers,
    subsets_of,
)
from tidegate.mesh.compiler.routes.destinations import (
    destination_port,
    hosts_of_rule,
    mirrors_of,
)
from tidegate.mesh.lint.kubernetes.view import KubernetesView

__all__ = ["DefinedHost", "MeshView", "Route"]


@dataclass(frozen=True, slots=True)
class DefinedHost:
    """A host that the objects define.

    Attributes:
        name: Its name.
        entries: The ServiceEntries that define it; empty for a Service of Kubernetes.
        endpoints: Its endpoints; None where they are unknown.
    """

    name: HostName
    entries: tuple[ServiceEntry, ...]
    endpoints: tuple[Workload, ...] | None

    @property
    def entry(self) -> ServiceEntry | None:
        """The first ServiceEntry that defines it; None for a Service of Kubernetes."""
        return self.entries[0] if self.entries else None

    @property
    def ports(self) -> tuple[ServicePort, ...]:
        """Its ports; empty where they are unknown."""
        return tuple(ports_of(self.entries).values())


@dataclass(frozen=True, slots=True)
class Route:
    """One rule of a VirtualService.

    Attributes:
        virtual_service: The VirtualService.
        index: The index of the rule in it.
        rule: The rule.
    """

    virtual_service: VirtualService
    index: int
    rule: HttpRoute

    @property
    def path(self) -> str:
        """The path of the rule in the object."""
        return f"spec.http[{self.index}]"

    @property
    def for_clients_in_mesh(self) -> bool:
        """Whether clients inside the mesh, such as proxyless gRPC clients, follow it."""
        return MESH in self.virtual_service.gateways

    @property
    def hosts(self) -> set[HostName]:
        """The hosts to which it sends requests or copies."""
        return set(hosts_of_rule(self.rule))

    def shares(self) -> Iterator[tuple[int, Destination, float]]:
        """Its weighted destinations: index, destination, and share of the requests, 0 to 1."""
        total = sum(each.weight for each in self.rule.route)
        for index, each in enumerate(self.rule.route):
            single = len(self.rule.route) == 1
            yield index, each.destination, 1.0 if single else each.weight / (total or 1)

    def mirrors(self) -> Iterator[tuple[str, Destination, float]]:
        """Its mirrors: path in the rule, destination, and percentage of the requests."""
        for path, each in mirrors_of(self.rule):
            yield path, each.destination, each.percentage


@dataclass(frozen=True)
class MeshView:
    """The mesh.

    Attributes:
        objects: Its objects.
        ignored: Other documents in the files, which are not compiled.
        p99: The 99th percentile of hosts' response times, where it was given.
        kubernetes: Objects of Kubernetes in the files.
    """

    objects: IstioObjects
    ignored: tuple[Ignored, ...] = ()
    p99: Mapping[HostName, dt.timedelta] = field(default_factory=dict)
    kubernetes: KubernetesView = field(default_factory=KubernetesView)

    @functools.cached_property
    def hosts(self) -> Mapping[HostName, DefinedHost]:
        """Every host that is defined."""
        found: dict[HostName, DefinedHost] = {}
        for each in self.ignored:
            if each.kind == "Service":
                namespace, _, name = each.name.rpartition("/")
                full = HostName(f"{name}.{namespace or 'default'}.svc.{DOMAIN}")
                found[full] = DefinedHost(full, (), None)
        entries_of = entries_by_host(self.objects.service_entries.values())
        for host in (host for each in self.objects.service_entries.values() for host in each.hosts):
            entries = entries_of[host]
            endpoints = tuple(each for entry in entries for each in self._endpoints(entry))
            found[host] = DefinedHost(host, tuple(entries), endpoints or None)
        return found

    @functools.cached_property
    def workloads(self) -> WorkloadSelection:
        """Finds the WorkloadEntries that ServiceEntries select."""
        return WorkloadSelection(self.objects.workload_entries.values())

    @functools.cached_property
    def gateways(self) -> Mapping[GatewayName, Gateway]:
        """The Gateways by the names that VirtualServices use."""
        return {gateway_name(name): each for name, each in self.objects.gateways.items()}

    @functools.cached_property
    def routes(self) -> tuple[Route, ...]:
        """Every rule of every VirtualService."""
        return tuple(
            Route(virtual_service, index, rule)
            for virtual_service in self.objects.virtual_services.values()
            for index, rule in enumerate(virtual_service.http)
        )

    @functools.cached_property
    def rules_of(self) -> Mapping[HostName, tuple[DestinationRule, ...]]:
        """The DestinationRules of each host."""
        found: dict[HostName, tuple[DestinationRule, ...]] = {}
        for each in self.objects.destination_rules.values():
            found[each.host] = (*found.get(each.host, ()), each)
        return found

    @functools.cached_property
    def sent_to(self) -> Mapping[HostName, tuple[tuple[Route, Destination, float], ...]]:
        """The routes to each host: route, destination, and share of the route's requests."""
        found: dict[HostName, list[tuple[Route, Destination, float]]] = {}
        for route in self.routes:
            for _, destination, share in route.shares():
                found.setdefault(destination.host, []).append((route, destination, share))
        return {host: tuple(each) for host, each in found.items()}

    def in_order(self) -> list[VirtualService]:
        """The VirtualServices in the order in which the compiler puts their routes together."""
        virtual_services = self.objects.virtual_services.values()
        return sorted(virtual_services, key=lambda each: order_of(each.name))

    def routes_of(self, virtual_service: VirtualService) -> list[Route]:
        """The rules of a VirtualService."""
        return [route for route in self.routes if route.virtual_service is virtual_service]

    def subset(self, host: HostName, name: SubsetName) -> Subset | None:
        """A subset of a host; None where no DestinationRule defines it."""
        return subsets_of(self.rules_of.get(host, ())).get(name)

    def endpoints(self, host: HostName, subset: SubsetName | None) -> tuple[Workload, ...] | None:
        """The endpoints of a host, or of a subset of it; None where they are unknown."""
        known = self.hosts.get(host)
        if known is None or known.endpoints is None or subset is None:
            return known.endpoints if known is not None else None
        found = self.subset(host, subset)
        if found is None:
            return None
        return tuple(each for each in known.endpoints if has_labels(each.labels, found.labels))

    def port_of(self, destination: Destination) -> ServicePort | None:
        """The port of a destination; None where it is unknown."""
        known = self.hosts.get(destination.host)
        if known is None:
            return None
        ports = ports_of(known.entries)
        number = destination_port(destination, ports)
        return None if number is None else ports[number]

    def tls_of(self, destination: Destination) -> ClientTls | None:
        """How connections to a destination are secured, where a DestinationRule says it."""
        port = self.port_of(destination)
        number = port.number if port is not None else destination.port
        layers = self.policies(destination.host, destination.subset, number)
        return next((each.policy.tls for each in layers if each.policy.tls is not None), None)

    def gateways_of(self, virtual_service: VirtualService) -> Iterator[tuple[int, GatewayName]]:
        """The Gateways that a VirtualService names, without the word ``mesh``."""
        return (
            (index, name) for index, name in enumerate(virtual_service.gateways) if name != MESH
        )

    def p99_of(self, host: HostName) -> dt.timedelta | None:
        """The 99th percentile of a host's response times; None where it is unknown."""
        if host in self.p99:
            return self.p99[host]
        known = self.hosts.get(host)
        annotated = (each.annotations.p99 for each in known.entries) if known is not None else ()
        return next((each for each in annotated if each is not None), None)

    def policies(
        self, host: HostName, subset: SubsetName | None, port: int | None
    ) -> tuple[PolicyLayer, ...]:
        """The policies that hold for a host or subset, the nearest first."""
        rules = sorted(self.rules_of.get(host, ()), key=lambda rule: rule.name.name)
        # Proxies of any namespace may call the host, so the rules of each namespace count.
        deciding = [
            rule
            for namespace in dict.fromkeys(each.name.namespace for each in rules)
            for rule in deciding_rules(each for each in rules if each.name.namespace == namespace)
        ]
        return policy_layers(deciding, subset, port)

    def _endpoints(self, entry: ServiceEntry) -> tuple[Workload, ...]:
        if entry.workload_selector is None:
            return entry.endpoints
        return self.workloads.of(entry)
