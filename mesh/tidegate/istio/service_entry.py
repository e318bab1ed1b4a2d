"""ServiceEntry and WorkloadEntry: what hosts there are, and which endpoints stand behind them.

On a cluster Kubernetes' Services say it; on a laptop these objects do.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from tidegate.istio.annotations import NoAnnotations, ServiceEntryAnnotations
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
    """What is spoken at a port of a host; Istio takes any case of letters."""

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
        """Whether requests, and not only connections, are seen."""
        return self in (self.HTTP, self.HTTP2, self.GRPC, self.GRPC_WEB)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort(Message):
    """A port of a host.

    Attributes:
        number: the port that clients name.
        name: what it is called.
        protocol: what is spoken there. Without it proxies speak HTTP/1.1 to the endpoints; the name
            says nothing here, unlike in a Service of Kubernetes.
        target_port: the port at the endpoints; ``number`` without it.
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
    """How endpoints' addresses are found."""

    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    DYNAMIC_DNS = "DYNAMIC_DNS"

    @property
    def by_dns(self) -> bool:
        """Whether addresses are names that proxies resolve."""
        return self in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN, Resolution.DYNAMIC_DNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload(Message):
    """One endpoint.

    Attributes:
        address: an IP address, or a name where DNS finds addresses.
        ports: its own ports by the names of the host's ports; the target port without one.
        labels: what subsets select by.
        weight: its share among the endpoints; 1 without it.
        locality: where it is, as ``region/zone/subzone``; kept for reports.
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
        name: what the object is called.
        annotations: its ``tidegate.dev/*`` annotations.
        hosts: the names of the host.
        ports: its ports.
        location: whether it belongs to the mesh.
        resolution: how endpoints' addresses are found: by DNS all addresses of a name are used, or
            one after another.
        endpoints: the endpoints; without any, DNS is asked for the host.
        workload_selector: labels of the WorkloadEntries of the same namespace that are its
            endpoints, instead of ``endpoints``.
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
    """An endpoint that is an object of its own.

    Attributes:
        name: what the object is called.
        annotations: it has none of ``tidegate.dev``.
    """

    name: ObjectName
    annotations: NoAnnotations = field(default_factory=NoAnnotations)
