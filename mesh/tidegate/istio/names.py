"""Names of objects and hosts, and istiod's rules for short names."""

import enum
from dataclasses import dataclass

from tidegate.istio.scalars import is_ip_address
from tidegate.istio.shapes import GatewayName, HostName

__all__ = [
    "CANONICAL_NAME_LABELS",
    "CANONICAL_REVISION_LABELS",
    "DEFAULT_NAMESPACE",
    "DOMAIN",
    "MESH",
    "Kind",
    "ObjectName",
    "full_gateway_name",
    "full_host_name",
]

DEFAULT_NAMESPACE = "default"
DOMAIN = "cluster.local"
CANONICAL_NAME_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
"""Labels that give a workload its canonical name in Istio's telemetry; the first one counts."""

CANONICAL_REVISION_LABELS = (
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
)
"""Labels that give a workload its canonical revision; the first one counts."""

MESH = GatewayName("mesh")
"""Istio's name for the clients inside the mesh, where a VirtualService names gateways."""


class Kind(enum.Enum):
    """The kinds of objects that Tidegate reads."""

    VIRTUAL_SERVICE = "VirtualService"
    DESTINATION_RULE = "DestinationRule"
    GATEWAY = "Gateway"
    SERVICE_ENTRY = "ServiceEntry"
    WORKLOAD_ENTRY = "WorkloadEntry"


@dataclass(frozen=True, slots=True, order=True)
class ObjectName:
    """The name of an object.

    Attributes:
        kind: Its kind, by Istio's name.
        namespace: Its namespace.
        name: Its name in the namespace.
    """

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.namespace}/{self.name}"


def full_host_name(host: str, namespace: str) -> HostName:
    """Returns the full name of a host, as istiod's ``ResolveShortnameToFQDN`` does.

    A name with a dot, an IP address and ``*`` stay as they are; any other name is a service of the
    namespace.
    """
    if not host or host == "*" or "." in host or is_ip_address(host):
        return HostName(host)
    return HostName(f"{host}.{namespace}.svc.{DOMAIN}")


def full_gateway_name(gateway: str, namespace: str) -> GatewayName:
    """Returns ``namespace/name`` of a gateway that a VirtualService names.

    Accepts ``name``, ``namespace/name``, ``./name`` and the old ``name.namespace.svc…``.
    """
    if gateway == MESH:
        return MESH
    where, slash, name = gateway.partition("/")
    if slash:
        return GatewayName(f"{namespace if where == '.' else where}/{name}")
    name, _, rest = gateway.partition(".")
    return GatewayName(f"{rest.split('.')[0] or namespace}/{name}")
