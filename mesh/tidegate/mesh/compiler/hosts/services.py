"""What hosts there are: the registry that istiod keeps, made of ServiceEntries and WorkloadEntries.

A host is a service with ports, and each port has endpoints. Several ServiceEntries of one namespace
may define a host together: it has the ports and the endpoints of all. Those of other namespaces
do not count beside the first, by the names of namespaces, as in istiod. A service that is made of
the same objects as before is the identical value, so that what is built on it can tell by that that
nothing changed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from tidegate.istio.names import ObjectName
from tidegate.istio.objects import IstioObjects
from tidegate.istio.scalars import is_ip_address
from tidegate.istio.service_entry import (
    Location,
    PortProtocol,
    Resolution,
    ServiceEntry,
    ServicePort,
    Workload,
    WorkloadEntry,
)
from tidegate.istio.shapes import HostName
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.settings import OWN_NAMESPACE, MeshSettings

__all__ = ["Endpoint", "Port", "RegisteredService", "ServiceRegistry", "ServiceRegistryBuilder"]

_HTTP2: Final = (PortProtocol.GRPC, PortProtocol.HTTP2, PortProtocol.GRPC_WEB)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place where a port of a host is served.

    Attributes:
        address: an IP address, or a name of DNS.
        port: the port there.
        workload: the name of what runs there.
        namespace: where that is.
        labels: what subsets select by.
        weight: its share among the endpoints.
    """

    address: str
    port: int
    workload: str
    namespace: str
    labels: Mapping[str, str]
    weight: int

    @property
    def key(self) -> str:
        """``address:port``, an IPv6 address in brackets."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a host.

    Attributes:
        number: the port that clients name.
        protocol: what is spoken there, where that is said.
        endpoints: where it is served.
    """

    number: int
    protocol: PortProtocol | None
    endpoints: tuple[Endpoint, ...]

    @property
    def http2(self) -> bool:
        """Whether endpoints are spoken to by HTTP/2."""
        return self.protocol in _HTTP2


@dataclass(frozen=True, slots=True, eq=False)
class RegisteredService:
    """A host.

    Attributes:
        host: its name.
        source: the object that defines it, the first of several.
        resolution: how endpoints' addresses are found.
        external: whether it is outside of the mesh.
        ports: its ports by number.
        addresses: ``address:port`` of its endpoints, at all ports, each once.
    """

    host: HostName
    source: ObjectName
    resolution: Resolution
    external: bool
    ports: Mapping[int, Port]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ServiceRegistry:
    """All hosts.

    Attributes:
        by_host: the hosts by name.
        errors: what is wrong with those that are left out.
    """

    by_host: Mapping[HostName, RegisteredService]
    errors: tuple[CompileError, ...]


class ServiceRegistryBuilder:
    """Makes services of objects, anew only those whose objects changed.

    Args:
        settings: where proxies live, who do not see what other namespaces keep to themselves.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._proxy_namespace = settings.proxy_namespace
        self._inputs: tuple[object, object] = (None, None)
        self._services = ServiceRegistry({}, ())
        self._made: dict[HostName, tuple[tuple[object, ...], RegisteredService]] = {}

    def build(self, objects: IstioObjects) -> ServiceRegistry:
        """The hosts that the objects define."""
        entries, workloads = objects.service_entries, objects.workload_entries
        if self._inputs[0] is entries and self._inputs[1] is workloads:
            return self._services
        by_label = _by_label(workloads.values())
        made: dict[HostName, tuple[tuple[object, ...], RegisteredService]] = {}
        chosen = {each.name: _chosen(each, by_label) for each in entries.values()}
        errors = list(_names((entry, chosen[entry.name]) for entry in entries.values()))
        for host, group in self._by_host(entries.values()).items():
            parts = tuple((entry, chosen[entry.name]) for entry in group)
            contradiction = _contradiction(host, group)
            if contradiction is not None:
                errors.append(contradiction)
                parts = parts[:1]
            inputs = tuple(each for entry, found in parts for each in (entry, *found))
            known = self._made.get(host)
            made[host] = known if known and known[0] == inputs else (inputs, _service(host, parts))
        self._made, self._inputs = made, (entries, workloads)
        by_host = {host: service for host, (_, service) in made.items()}
        self._services = ServiceRegistry(by_host, tuple(errors))
        return self._services

    def _by_host(self, entries: Iterable[ServiceEntry]) -> Mapping[HostName, list[ServiceEntry]]:
        """For each host the entries that define it, which are of one namespace."""
        by_host: dict[HostName, list[ServiceEntry]] = {}
        for entry in sorted(entries, key=lambda each: (each.name.namespace, each.name.name)):
            namespace = entry.name.namespace
            if entry.export_to == OWN_NAMESPACE and namespace != self._proxy_namespace:
                continue
            for host in entry.hosts:
                group = by_host.setdefault(host, [])
                if not group or group[0].name.namespace == namespace:
                    group.append(entry)
        return by_host


_ByLabel: TypeAlias = Mapping[tuple[str, str, str], list[WorkloadEntry]]


def _by_label(workloads: Iterable[WorkloadEntry]) -> _ByLabel:
    """WorkloadEntries by namespace, label and its value, so that a selector reads only a few."""
    found: dict[tuple[str, str, str], list[WorkloadEntry]] = defaultdict(list)
    for each in workloads:
        for label, value in each.labels.items():
            found[each.name.namespace, label, value].append(each)
    return found


def _chosen(entry: ServiceEntry, by_label: _ByLabel) -> tuple[WorkloadEntry, ...]:
    selector = entry.workload_selector
    if not selector:
        return ()
    candidates = min(
        (by_label.get((entry.name.namespace, *item), []) for item in selector.items()), key=len
    )
    chosen = [each for each in candidates if selector.items() <= each.labels.items()]
    return tuple(sorted(chosen, key=lambda each: each.name.name))


_Part: TypeAlias = tuple[ServiceEntry, tuple[WorkloadEntry, ...]]
"""An entry, and the WorkloadEntries that it selects."""


def _service(host: HostName, parts: Sequence[_Part]) -> RegisteredService:
    first, _ = parts[0]
    named: dict[int, ServicePort] = {}
    for entry, _ in parts:
        for port in entry.ports:
            named.setdefault(port.number, port)
    ports = {number: _port(host, port, parts) for number, port in named.items()}
    found = (each.key for port in ports.values() for each in port.endpoints)
    return RegisteredService(
        host=host,
        source=first.name,
        resolution=first.resolution,
        external=first.location is Location.MESH_EXTERNAL,
        ports=ports,
        addresses=tuple(dict.fromkeys(found)),
    )


def _port(host: HostName, port: ServicePort, parts: Sequence[_Part]) -> Port:
    """A port with the endpoints of all entries that have a port of its name."""
    endpoints = (
        _endpoint(name, workload, entry, own)
        for entry, chosen in parts
        for own in entry.ports
        if own.name == port.name
        for name, workload in _workloads(host, entry, chosen)
    )
    return Port(port.number, port.protocol, tuple(endpoints))


def _workloads(
    host: HostName, entry: ServiceEntry, chosen: tuple[WorkloadEntry, ...]
) -> Iterator[tuple[str, Workload]]:
    """What an entry says of its endpoints; of a host that DNS finds, the host itself."""
    if entry.workload_selector:
        yield from ((each.name.name, each) for each in chosen)
    elif entry.endpoints:
        yield from ((entry.name.name, each) for each in entry.endpoints)
    elif entry.resolution is not Resolution.STATIC:
        yield entry.name.name, Workload(address=host)


def _endpoint(name: str, workload: Workload, entry: ServiceEntry, port: ServicePort) -> Endpoint:
    return Endpoint(
        address=workload.address,
        port=workload.ports.get(port.name, port.target_port or port.number),
        workload=name,
        namespace=entry.name.namespace,
        labels=workload.labels,
        weight=workload.weight or 1,
    )


def _names(parts: Iterable[_Part]) -> Iterator[CompileError]:
    """Endpoints that Envoy would have to resolve, of a host of which it resolves none."""
    for entry, chosen in parts:
        for each in chosen if entry.resolution is Resolution.STATIC else ():
            if not is_ip_address(each.address):
                yield CompileError(
                    each.name,
                    "spec.address",
                    f"{each.address!r} is not an IP address, and {entry.name} has resolution"
                    " STATIC",
                    f"write an IP address, or 'resolution: DNS' in {entry.name}",
                )


def _contradiction(host: HostName, group: Sequence[ServiceEntry]) -> CompileError | None:
    """What in the entries for a host cannot hold together."""
    first = group[0]
    ports = {port.number: (first, port) for port in first.ports}
    for other in group[1:]:
        for field in ("resolution", "location"):
            mine, yours = getattr(first, field), getattr(other, field)
            if mine is not yours:
                problem = f"{yours.value} for {host}, which is {mine.value} in {first.name}"
                return CompileError(other.name, f"spec.{field}", problem, "say the same in both")
        for index, port in enumerate(other.ports):
            entry, known = ports.setdefault(port.number, (other, port))
            if (known.name, known.protocol) != (port.name, port.protocol):
                return CompileError(
                    other.name,
                    f"spec.ports[{index}]",
                    f"port {port.number} of {host} has another name or protocol in {entry.name}",
                    "say the same in both",
                )
    return None
