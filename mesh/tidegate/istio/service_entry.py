"""ServiceEntry and WorkloadEntry: the hosts of the mesh and their endpoints.

On a cluster Services of Kubernetes define these; on a laptop these objects do.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from tidegate.istio.annotations import ServiceEntryAnnotations, WorkloadEntryAnnotations
from tidegate.istio.names import ObjectName
from tidegate.istio.shapes import AnyCase, HostName, Inside, Label, Message, Range

__all__ = [
    "Location",
    "PortProtocol",
    "Resolution",
    "ServiceEntry",
    "ServicePort",
    "Workload",
    "WorkloadEntry",
]

_PORT = Range(1, 65535)
_UINT32 = Range(0, 2**32 - 1)


class PortProtocol(AnyCase):
    """The protocol of a host's port, in any case of letters."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    GRPC_WEB = "GRPC-WEB"
    HTTPS = "HTTPS"
    TCP = "TCP"
    TLS = "TLS"
    HTTP_PROXY = "HTTP_PROXY"
    MONGO = "MONGO"
    MYSQL = "MYSQL"
    REDIS = "REDIS"
    UDP = "UDP"

    @property
    def routed(self) -> bool:
        """Whether the proxy routes single requests and not only connections."""
        return self in (self.HTTP, self.HTTP2, self.GRPC, self.GRPC_WEB)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort(Message):
    """A port of a host.

    Attributes:
        number: The port that clients call.
        name: The name of the port.
        protocol: The protocol. Without it proxies use HTTP/1.1 to the endpoints. The name has no
            effect here, unlike in a Service of Kubernetes.
        target_port: The port at the endpoints; ``number`` without it.
    """

    number: Annotated[int, _PORT]
    name: Label
    protocol: PortProtocol | None = None
    target_port: Annotated[int | None, _PORT] = None


class Location(enum.Enum):
    """Whether a host belongs to the mesh."""

    MESH_EXTERNAL = "MESH_EXTERNAL"
    MESH_INTERNAL = "MESH_INTERNAL"


class Resolution(enum.Enum):
    """How the proxy finds the addresses of endpoints."""

    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    DYNAMIC_DNS = "DYNAMIC_DNS"

    @property
    def by_dns(self) -> bool:
        """Whether the proxy resolves addresses by DNS."""
        return self in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN, Resolution.DYNAMIC_DNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload(Message):
    """One endpoint.

    Attributes:
        address: An IP address, or a DNS name.
        ports: Its ports by the names of the host's ports; the target port without one.
        labels: Labels that subsets select by.
        weight: Its share among the endpoints; 1 without it.
        locality: Its locality, as ``region/zone/subzone``; for reports only.
    """

    OPAQUE = frozenset({"network", "serviceAccount"})

    address: str
    ports: Mapping[str, Annotated[int, _PORT]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    weight: Annotated[int | None, _UINT32] = None
    locality: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntry(Message):
    """A host.

    Attributes:
        name: The name of the object.
        annotations: Its ``tidegate.dev/*`` annotations.
        hosts: The names of the host.
        ports: Its ports.
        location: Whether the host belongs to the mesh.
        resolution: How the proxy finds the endpoints. ``DNS`` uses all addresses of a name,
            ``DNS_ROUND_ROBIN`` one after another.
        endpoints: The endpoints. Without any, the proxy resolves the host by DNS.
        workload_selector: Labels of WorkloadEntries in the same namespace that are the endpoints,
            instead of ``endpoints``.
        export_to: ``*`` for every namespace, ``.`` for its own.
    """

    OPAQUE = frozenset({"addresses", "subjectAltNames"})

    name: ObjectName
    annotations: ServiceEntryAnnotations = field(default_factory=ServiceEntryAnnotations)
    hosts: tuple[HostName, ...]
    ports: tuple[ServicePort, ...] = ()
    location: Location = Location.MESH_EXTERNAL
    resolution: Resolution = Resolution.NONE
    endpoints: tuple[Workload, ...] = ()
    workload_selector: Annotated[Mapping[str, str] | None, Inside("labels")] = None
    export_to: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEntry(Workload):
    """An endpoint as an object of its own.

    Attributes:
        name: The name of the object.
        annotations: Its ``tidegate.dev/*`` annotations.
    """

    name: ObjectName
    annotations: WorkloadEntryAnnotations = field(default_factory=WorkloadEntryAnnotations)
