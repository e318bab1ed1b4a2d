"""The mesh as rules look at it: hosts with their endpoints, routes, and what holds for each.

A host of which no endpoint is in the objects, because its WorkloadEntries are made while servers
run, or because it is a Service of Kubernetes, has endpoints that are not known: nothing is said
about them.
"""

import datetime as dt
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tidegate.istio.destination_rule import (
    ClientTls,
    DestinationRule,
    PortTrafficPolicy,
    Subset,
    TrafficPolicy,
)
from tidegate.istio.names import DOMAIN, MESH
from tidegate.istio.objects import IstioObjects
from tidegate.istio.parsing import Ignored
from tidegate.istio.service_entry import ServiceEntry, ServicePort, Workload
from tidegate.istio.shapes import GatewayName, HostName, SubsetName
from tidegate.istio.virtual_service import Destination, HttpRoute, VirtualService

__all__ = ["Host", "MeshView", "Route", "covers_domain"]


@dataclass(frozen=True, slots=True)
class Host:
    """A host.

    Attributes:
        name: its name.
        entry: the ServiceEntry that defines it; None for a Service of Kubernetes.
        endpoints: its endpoints; None where they are not known.
    """

    name: HostName
    entry: ServiceEntry | None
    endpoints: tuple[Workload, ...] | None

    @property
    def ports(self) -> tuple[ServicePort, ...]:
        """Its ports; none where they are not known."""
        return self.entry.ports if self.entry is not None else ()


@dataclass(frozen=True, slots=True)
class Route:
    """One rule of a VirtualService.

    Attributes:
        service: the VirtualService.
        index: its place in it.
        rule: the rule.
    """

    service: VirtualService
    index: int
    rule: HttpRoute

    @property
    def path(self) -> str:
        """Its path in the object."""
        return f"spec.http[{self.index}]"

    @property
    def for_clients_in_mesh(self) -> bool:
        """Whether clients inside the mesh, such as gRPC clients without a proxy, follow it."""
        return MESH in self.service.gateways

    def shares(self) -> Iterator[tuple[int, Destination, float]]:
        """Its weighted destinations: place, destination, and share of the requests, 0 to 1."""
        total = sum(each.weight for each in self.rule.route)
        for index, each in enumerate(self.rule.route):
            single = len(self.rule.route) == 1
            yield index, each.destination, 1.0 if single else each.weight / (total or 1)

    def mirrors(self) -> Iterator[tuple[str, Destination, float]]:
        """Its mirrors: path in the rule, destination, and percentage."""
        if self.rule.mirror is not None:
            percentage = self.rule.mirror_percentage
            yield "mirror", self.rule.mirror, 100.0 if percentage is None else percentage
        for index, each in enumerate(self.rule.mirrors):
            yield f"mirrors[{index}].destination", each.destination, each.percentage


@dataclass(frozen=True)
class MeshView:
    """The mesh.

    Attributes:
        objects: its objects.
        ignored: documents beside them that are not compiled.
        p99: how long the slowest hundredth of a host's answers takes, where somebody said so.
    """

    objects: IstioObjects
    ignored: tuple[Ignored, ...] = ()
    p99: Mapping[HostName, dt.timedelta] = field(default_factory=dict)

    @functools.cached_property
    def hosts(self) -> Mapping[HostName, Host]:
        """Every host that is defined."""
        found: dict[HostName, Host] = {}
        for each in self.ignored:
            if each.kind == "Service":
                namespace, _, name = each.name.rpartition("/")
                full = HostName(f"{name}.{namespace or 'default'}.svc.{DOMAIN}")
                found[full] = Host(full, None, None)
        for entry in self.objects.service_entries.values():
            for name in entry.hosts:
                found[name] = Host(name, entry, self._endpoints(entry))
        return found

    @functools.cached_property
    def routes(self) -> tuple[Route, ...]:
        """Every rule of every VirtualService."""
        return tuple(
            Route(service, index, rule)
            for service in self.objects.virtual_services.values()
            for index, rule in enumerate(service.http)
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
        """What is sent to each host: route, destination, and share of the route's requests."""
        found: dict[HostName, list[tuple[Route, Destination, float]]] = {}
        for route in self.routes:
            for _, destination, share in route.shares():
                found.setdefault(destination.host, []).append((route, destination, share))
        return {host: tuple(each) for host, each in found.items()}

    def subset(self, host: HostName, name: SubsetName) -> Subset | None:
        """A subset of a host."""
        for each in self.rules_of.get(host, ()):
            for subset in each.subsets:
                if subset.name == name:
                    return subset
        return None

    def endpoints(self, host: HostName, subset: SubsetName | None) -> tuple[Workload, ...] | None:
        """The endpoints of a host, or of a subset of it; None where they are not known."""
        known = self.hosts.get(host)
        if known is None or known.endpoints is None or subset is None:
            return known.endpoints if known is not None else None
        found = self.subset(host, subset)
        if found is None:
            return None
        labels = found.labels.items()
        return tuple(each for each in known.endpoints if labels <= each.labels.items())

    def port_of(self, destination: Destination) -> ServicePort | None:
        """The port that a destination means; None where it is not known."""
        known = self.hosts.get(destination.host)
        ports = known.ports if known is not None else ()
        if destination.port is None:
            return ports[0] if len(ports) == 1 else None
        return next((each for each in ports if each.number == destination.port), None)

    def tls_of(self, destination: Destination) -> ClientTls | None:
        """How connections to a destination are secured, where a DestinationRule says it."""
        port = self.port_of(destination)
        number = port.number if port is not None else destination.port
        policies = self.policies(destination.host, destination.subset, number)
        return next((each.tls for _, each in policies if each.tls is not None), None)

    def gateways_of(self, service: VirtualService) -> Iterator[tuple[int, GatewayName]]:
        """The gateways that a VirtualService names, but for the word ``mesh``."""
        return ((index, name) for index, name in enumerate(service.gateways) if name != MESH)

    def p99_of(self, host: HostName) -> dt.timedelta | None:
        """How long the slowest hundredth of a host's answers takes."""
        if host in self.p99:
            return self.p99[host]
        known = self.hosts.get(host)
        return known.entry.annotations.p99 if known is not None and known.entry else None

    def policies(
        self, host: HostName, subset: SubsetName | None, port: int | None
    ) -> tuple[tuple[str, TrafficPolicy | PortTrafficPolicy], ...]:
        """What holds for a host or subset: path of each policy and the policy, the nearest first.

        A part that the first leaves out comes from the second. A port's own policy stands alone.
        """
        found: list[tuple[str, TrafficPolicy | PortTrafficPolicy]] = []
        for each in self.rules_of.get(host, ()):
            places = [
                (f"spec.subsets[{index}].trafficPolicy", one.traffic_policy)
                for index, one in enumerate(each.subsets)
                if one.name == subset
            ]
            places.append(("spec.trafficPolicy", each.traffic_policy))
            for path, policy in places:
                if policy is None:
                    continue
                own = [
                    (f"{path}.portLevelSettings[{index}]", one)
                    for index, one in enumerate(policy.port_level_settings)
                    if one.port == port
                ]
                found.extend(own or [(path, policy)])
                if own:
                    return tuple(found)
        return tuple(found)

    def _endpoints(self, entry: ServiceEntry) -> tuple[Workload, ...] | None:
        if entry.workload_selector is None:
            return entry.endpoints or None
        wanted = entry.workload_selector.items()
        return (
            tuple(
                each
                for each in self.objects.workload_entries.values()
                if each.name.namespace == entry.name.namespace and wanted <= each.labels.items()
            )
            or None
        )


def covers_domain(pattern: str, domain: str) -> bool:
    """Whether a domain of a gateway, such as ``*.example.com``, takes another."""
    pattern, domain = pattern.lower(), domain.lower()
    if pattern in ("*", domain):
        return True
    return pattern.startswith("*.") and domain.removeprefix("*").endswith(pattern[1:])
