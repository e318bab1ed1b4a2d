"""The service registry: the hosts that ServiceEntries and WorkloadEntries define.

A host is a service with ports, and each port has endpoints. Several ServiceEntries of one namespace
may define a host together, as in istiod: it has the ports of those with the same ``exportTo``, and
the endpoints of all, even of those that the proxies do not see. If several namespaces define a
host, only one counts: that of the proxies if it keeps the host to itself, else the first by name.

A service that is made of the same objects as before is the identical value. So whatever is built on
it sees by identity that nothing changed.
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

__all__ = [
    "Endpoint",
    "RegisteredPort",
    "RegisteredService",
    "ServiceRegistry",
    "ServiceRegistryBuilder",
    "WorkloadSelection",
    "entries_by_host",
    "has_labels",
    "ports_of",
]

_HTTP2: Final = (PortProtocol.GRPC, PortProtocol.HTTP2, PortProtocol.GRPC_WEB)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address at which a port of a host is served.

    Attributes:
        address: An IP address, or a DNS name.
        port: The port at this address.
        workload: The name of its workload.
        namespace: The namespace of its workload.
        labels: The labels by which subsets select it.
        weight: Its share among the endpoints.
        readiness: The HTTP path that tells whether it takes requests; empty if none does.
    """

    address: str
    port: int
    workload: str
    namespace: str
    labels: Mapping[str, str]
    weight: int
    readiness: str = ""

    @property
    def key(self) -> str:
        """``address:port``, an IPv6 address in brackets."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"


@dataclass(frozen=True, slots=True)
class RegisteredPort:
    """A port of a host.

    Attributes:
        number: The port that clients name.
        protocol: The protocol, where one is declared.
        endpoints: The endpoints that serve it.
    """

    number: int
    protocol: PortProtocol | None
    endpoints: tuple[Endpoint, ...]

    @property
    def http2(self) -> bool:
        """Whether proxies speak HTTP/2 to its endpoints."""
        return self.protocol in _HTTP2


@dataclass(frozen=True, slots=True, eq=False)
class RegisteredService:
    """A host in the registry.

    Attributes:
        host: Its name.
        source: The object that defines it, the first of several.
        resolution: How proxies find the addresses of its endpoints.
        external: Whether it is outside of the mesh.
        ports: Its ports by number.
        addresses: ``address:port`` of its endpoints, at all ports, each once.
    """

    host: HostName
    source: ObjectName
    resolution: Resolution
    external: bool
    ports: Mapping[int, RegisteredPort]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ServiceRegistry:
    """All hosts.

    Attributes:
        by_host: The hosts by name.
        errors: What is wrong with the definitions that are left out.
    """

    by_host: Mapping[HostName, RegisteredService]
    errors: tuple[CompileError, ...]


class ServiceRegistryBuilder:
    """Builds the registry; it makes only those services again whose objects changed.

    Args:
        settings: The namespace of the proxies, who do not see objects that other namespaces keep
            to themselves.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._proxy_namespace = settings.proxy_namespace
        self._inputs: tuple[object, object] = (None, None)
        self._registry = ServiceRegistry({}, ())
        self._made: dict[HostName, tuple[tuple[object, ...], RegisteredService]] = {}

    def build(self, objects: IstioObjects) -> ServiceRegistry:
        """The hosts that the objects define."""
        entries, workloads = objects.service_entries, objects.workload_entries
        if self._inputs[0] is entries and self._inputs[1] is workloads:
            return self._registry
        selection = WorkloadSelection(workloads.values())
        made: dict[HostName, tuple[tuple[object, ...], RegisteredService]] = {}
        selected = {
            each.name: tuple(sorted(selection.of(each), key=lambda one: one.name.name))
            for each in entries.values()
        }
        errors = list(_dns_names((entry, selected[entry.name]) for entry in entries.values()))
        visible = filter(self._is_visible, entries.values())
        hidden = _by_host_and_namespace(
            each for each in entries.values() if not self._is_visible(each)
        )
        for host, group in entries_by_host(visible, self._proxy_namespace).items():
            others = hidden.get((host, group[0].name.namespace), ())
            contradiction = _contradiction(host, group)
            if contradiction is not None:
                errors.append(contradiction)
                group, others = group[:1], ()
            parts = tuple((entry, selected[entry.name]) for entry in _by_name(group, others))
            inputs = (*group, *(each for entry, found in parts for each in (entry, *found)))
            known = self._made.get(host)
            if known is None or known[0] != inputs:
                known = inputs, _service(host, group, parts)
            made[host] = known
        self._made, self._inputs = made, (entries, workloads)
        by_host = {host: service for host, (_, service) in made.items()}
        self._registry = ServiceRegistry(by_host, tuple(errors))
        return self._registry

    def _is_visible(self, entry: ServiceEntry) -> bool:
        own = entry.name.namespace == self._proxy_namespace
        return own or entry.export_to != OWN_NAMESPACE


class WorkloadSelection:
    """Finds the WorkloadEntries that ServiceEntries select.

    Args:
        workloads: All WorkloadEntries.
    """

    def __init__(self, workloads: Iterable[WorkloadEntry]) -> None:
        # By namespace, label and its value, so that a selector reads only a few.
        self._by_label: dict[tuple[str, str, str], list[WorkloadEntry]] = defaultdict(list)
        for each in workloads:
            for label, value in each.labels.items():
                self._by_label[each.name.namespace, label, value].append(each)

    def of(self, entry: ServiceEntry) -> tuple[WorkloadEntry, ...]:
        """The WorkloadEntries of an entry's namespace that have the labels of its selector."""
        selector = entry.workload_selector
        if not selector:
            return ()
        candidates = min(
            (self._by_label.get((entry.name.namespace, *item), []) for item in selector.items()),
            key=len,
        )
        return tuple(each for each in candidates if has_labels(each.labels, selector))


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a selector of labels, such as that of a subset, selects something with labels."""
    return wanted.items() <= labels.items()


def entries_by_host(
    entries: Iterable[ServiceEntry], proxy_namespace: str = ""
) -> Mapping[HostName, list[ServiceEntry]]:
    """The entries that define each host: those of one namespace, in order.

    Args:
        entries: The entries that the proxies see.
        proxy_namespace: The namespace of the proxies. What it keeps to itself comes first.
    """

    def order(entry: ServiceEntry) -> tuple[bool, str, str]:
        namespace = entry.name.namespace
        private = namespace == proxy_namespace and entry.export_to == OWN_NAMESPACE
        return not private, namespace, entry.name.name

    by_host: dict[HostName, list[ServiceEntry]] = {}
    for entry in sorted(entries, key=order):
        for host in entry.hosts:
            group = by_host.setdefault(host, [])
            if not group or group[0].name.namespace == entry.name.namespace:
                group.append(entry)
    return by_host


def ports_of(entries: Iterable[ServiceEntry]) -> Mapping[int, ServicePort]:
    """The ports of a host by number; the first entry that defines a port counts.

    Entries with another ``exportTo`` than the first add none.
    """
    ports: dict[int, ServicePort] = {}
    exported: frozenset[str] | None = None
    for entry in entries:
        if exported is None:
            exported = frozenset(entry.export_to)
        if frozenset(entry.export_to) == exported:
            for port in entry.ports:
                ports.setdefault(port.number, port)
    return ports


def _by_name(*groups: Iterable[ServiceEntry]) -> list[ServiceEntry]:
    return sorted((each for group in groups for each in group), key=lambda each: each.name.name)


def _by_host_and_namespace(
    entries: Iterable[ServiceEntry],
) -> Mapping[tuple[HostName, str], list[ServiceEntry]]:
    found: dict[tuple[HostName, str], list[ServiceEntry]] = defaultdict(list)
    for entry in entries:
        for host in entry.hosts:
            found[host, entry.name.namespace].append(entry)
    return found


_Part: TypeAlias = tuple[ServiceEntry, tuple[WorkloadEntry, ...]]
"""An entry, and the WorkloadEntries that it selects."""


def _service(
    host: HostName, visible: Sequence[ServiceEntry], parts: Sequence[_Part]
) -> RegisteredService:
    """A host with the ports of the entries that proxies see, and the endpoints of all."""
    first = visible[0]
    declared = ports_of(visible)
    ports = {number: _port(host, port, parts) for number, port in declared.items()}
    found = (each.key for port in ports.values() for each in port.endpoints)
    return RegisteredService(
        host=host,
        source=first.name,
        resolution=first.resolution,
        external=first.location is Location.MESH_EXTERNAL,
        ports=ports,
        addresses=tuple(dict.fromkeys(found)),
    )


def _port(host: HostName, port: ServicePort, parts: Sequence[_Part]) -> RegisteredPort:
    """A port with the endpoints of all entries that have a port of its name."""
    endpoints = (
        _endpoint(name, workload, entry, own)
        for entry, selected in parts
        for own in entry.ports
        if own.name == port.name
        for name, workload in _workloads(host, entry, selected)
    )
    return RegisteredPort(port.number, port.protocol, tuple(endpoints))


def _workloads(
    host: HostName, entry: ServiceEntry, selected: tuple[WorkloadEntry, ...]
) -> Iterator[tuple[str, Workload]]:
    """The endpoints of an entry; the host itself where DNS finds its addresses."""
    if entry.workload_selector:
        yield from ((each.name.name, each) for each in selected)
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
        readiness=_readiness(workload),
    )


def _readiness(workload: Workload) -> str:
    path = workload.annotations.readiness if isinstance(workload, WorkloadEntry) else None
    return "" if path is None else path.path


def _dns_names(parts: Iterable[_Part]) -> Iterator[CompileError]:
    """Endpoints with DNS names, of hosts for which Envoy resolves none."""
    for entry, selected in parts:
        for each in selected if entry.resolution is Resolution.STATIC else ():
            if not is_ip_address(each.address):
                yield CompileError(
                    each.name,
                    "spec.address",
                    f"{each.address!r} is not an IP address, and {entry.name} has resolution"
                    " STATIC",
                    f"write an IP address, or 'resolution: DNS' in {entry.name}",
                )


def _contradiction(host: HostName, group: Sequence[ServiceEntry]) -> CompileError | None:
    """The first contradiction between the entries of a host."""
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
