"""What hosts there are: the registry that istiod keeps, made of ServiceEntries and WorkloadEntries.

A host is a service with ports, and each port has endpoints. A service that is made of the same
objects as before is the identical value, so that what is built on it can tell by that that nothing
changed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.settings import OWN_NAMESPACE, MeshSettings
from tidegate.mesh.istio.names import ObjectName
from tidegate.mesh.istio.objects import IstioObjects
from tidegate.mesh.istio.service_entry import (
    Location,
    PortProtocol,
    Resolution,
    ServiceEntry,
    ServicePort,
    Workload,
    WorkloadEntry,
)
from tidegate.mesh.istio.shapes import HostName

__all__ = ["Endpoint", "Port", "Service", "Services", "ServicesBuilder"]

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
class Service:
    """A host.

    Attributes:
        host: its name.
        source: the object that defines it.
        resolution: how endpoints' addresses are found.
        external: whether it is outside of the mesh.
        ports: its ports by number.
        addresses: ``address:port`` of its endpoints, at all ports.
    """

    host: HostName
    source: ObjectName
    resolution: Resolution
    external: bool
    ports: Mapping[int, Port]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Services:
    """All hosts.

    Attributes:
        by_host: the hosts by name.
        errors: what is wrong with those that are left out.
    """

    by_host: Mapping[HostName, Service]
    errors: tuple[CompileError, ...]


class ServicesBuilder:
    """Makes services of objects, anew only those whose objects changed.

    Args:
        settings: where proxies live, who do not see what other namespaces keep to themselves.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._proxy_namespace = settings.proxy_namespace
        self._inputs: tuple[object, object] = (None, None)
        self._services = Services({}, ())
        self._made: dict[tuple[ObjectName, HostName], tuple[tuple[object, ...], Service]] = {}

    def build(self, objects: IstioObjects) -> Services:
        """The hosts that the objects define."""
        entries, workloads = objects.service_entries, objects.workload_entries
        if self._inputs[0] is entries and self._inputs[1] is workloads:
            return self._services
        by_label = _by_label(workloads.values())
        made: dict[tuple[ObjectName, HostName], tuple[tuple[object, ...], Service]] = {}
        by_host: dict[HostName, Service] = {}
        errors: list[CompileError] = []
        for entry in entries.values():
            if entry.export_to == OWN_NAMESPACE and entry.name.namespace != self._proxy_namespace:
                continue
            chosen = _chosen(entry, by_label)
            for index, host in enumerate(entry.hosts):
                known = by_host.get(host)
                if known is not None:
                    errors.append(_twice(entry, index, known))
                    continue
                service = self._service(entry, host, chosen)
                made[entry.name, host] = ((entry, *chosen), service)
                by_host[host] = service
                errors.extend(_duplicates(service))
        self._made, self._inputs = made, (entries, workloads)
        self._services = Services(by_host, tuple(errors))
        return self._services

    def _service(
        self, entry: ServiceEntry, host: HostName, chosen: tuple[WorkloadEntry, ...]
    ) -> Service:
        inputs, known = self._made.get((entry.name, host), ((), None))
        if known is not None and inputs == (entry, *chosen):
            return known
        ports = {port.number: _port(entry, port, chosen) for port in entry.ports}
        return Service(
            host=host,
            source=entry.name,
            resolution=entry.resolution,
            external=entry.location is Location.MESH_EXTERNAL,
            ports=ports,
            addresses=tuple(each.key for port in ports.values() for each in port.endpoints),
        )


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


def _port(entry: ServiceEntry, port: ServicePort, chosen: tuple[WorkloadEntry, ...]) -> Port:
    workloads: Iterator[tuple[str, Workload]] = (
        ((each.name.name, each) for each in chosen)
        if entry.workload_selector
        else ((entry.name.name, each) for each in entry.endpoints)
    )
    return Port(
        number=port.number,
        protocol=port.protocol or _protocol_by_name(port.name),
        endpoints=tuple(
            Endpoint(
                address=workload.address,
                port=workload.ports.get(port.name, port.target_port or port.number),
                workload=name,
                namespace=entry.name.namespace,
                labels=workload.labels,
                weight=workload.weight or 1,
            )
            for name, workload in workloads
        ),
    )


def _protocol_by_name(name: str) -> PortProtocol | None:
    """The protocol of a port named after Istio's rule ``PROTOCOL[-SUFFIX]``."""
    lowered = name.lower()
    for protocol in sorted(PortProtocol, key=lambda each: -len(each.value)):
        prefix = protocol.value.lower()
        if lowered == prefix or lowered.startswith(f"{prefix}-"):
            return protocol
    return None


def _twice(entry: ServiceEntry, index: int, known: Service) -> CompileError:
    return CompileError(
        entry.name,
        f"spec.hosts[{index}]",
        f"{known.host} is already defined by {known.source}",
        "define a host once, with all its endpoints",
    )


def _duplicates(service: Service) -> Iterator[CompileError]:
    for port in service.ports.values():
        seen: dict[str, Endpoint] = {}
        for endpoint in port.endpoints:
            other = seen.setdefault(endpoint.key, endpoint)
            if other is not endpoint:
                yield CompileError(
                    service.source,
                    "spec.endpoints",
                    f"{endpoint.workload} and {other.workload} both have the address "
                    f"{endpoint.key} at port {port.number} of {service.host}",
                    "give each endpoint its own address and port",
                )
