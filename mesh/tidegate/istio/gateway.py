"""Gateway: the ports at which traffic enters the mesh, and the domains that each port serves."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from tidegate.istio.annotations import NoAnnotations
from tidegate.istio.names import ObjectName
from tidegate.istio.shapes import AnyCase, Message, Range

__all__ = [
    "Gateway",
    "GatewayPort",
    "GatewayProtocol",
    "Server",
    "ServerTls",
    "ServerTlsMode",
    "TlsVersion",
]


class GatewayProtocol(AnyCase):
    """The protocol of a gateway's port, in any case of letters."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPort(Message):
    """A port of a gateway.

    Attributes:
        number: The port to listen on.
        name: The name of the port.
        protocol: The protocol. ``HTTPS`` needs ``tls``; ``GRPC-WEB`` serves browsers too.
    """

    OPAQUE = frozenset({"targetPort"})

    number: Annotated[int, Range(1, 65535)]
    name: str
    protocol: GatewayProtocol


class ServerTlsMode(enum.Enum):
    """Whether clients present a certificate."""

    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    PASSTHROUGH = "PASSTHROUGH"
    AUTO_PASSTHROUGH = "AUTO_PASSTHROUGH"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"
    OPTIONAL_MUTUAL = "OPTIONAL_MUTUAL"


class TlsVersion(enum.Enum):
    """A version of TLS, by Istio's name."""

    TLS_AUTO = "TLS_AUTO"
    TLSV1_0 = "TLSV1_0"
    TLSV1_1 = "TLSV1_1"
    TLSV1_2 = "TLSV1_2"
    TLSV1_3 = "TLSV1_3"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls(Message):
    """TLS from clients.

    Attributes:
        mode: Whether clients present a certificate.
        server_certificate: File of the certificate chain.
        private_key: File of its private key.
        ca_certificates: File of the authorities that verify a client's certificate.
        ca_crl: File of revoked certificates.
        subject_alt_names: Names of which a client's certificate must have one.
        min_protocol_version: Oldest version; TLS 1.2 without it.
        max_protocol_version: Newest version; TLS 1.3 without it.
        cipher_suites: Cipher suites of TLS 1.2; Envoy's own list without it.
        https_redirect: Whether to redirect plain HTTP to HTTPS; only at an HTTP port.
    """

    OPAQUE = frozenset(
        {
            "credentialName",
            "credentialNames",
            "caCertCredentialName",
            "tlsCertificates",
            "insecureSkipVerify",
            "verifyCertificateHash",
            "verifyCertificateSpki",
        }
    )

    mode: ServerTlsMode | None = None
    server_certificate: str | None = None
    private_key: str | None = None
    ca_certificates: str | None = None
    ca_crl: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    min_protocol_version: TlsVersion = TlsVersion.TLS_AUTO
    max_protocol_version: TlsVersion = TlsVersion.TLS_AUTO
    cipher_suites: tuple[str, ...] = ()
    https_redirect: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Server(Message):
    """One port of a gateway and the domains that it serves.

    Attributes:
        port: The port.
        hosts: Domains, ``*`` for any. ``namespace/domain`` accepts only VirtualServices of the
            namespace, where ``.`` is the gateway's own.
        tls: TLS from clients.
        name: The name of the server.
    """

    OPAQUE = frozenset({"bind", "defaultEndpoint"})

    port: GatewayPort
    hosts: tuple[str, ...]
    tls: ServerTls | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway(Message):
    """The ports at which traffic enters the mesh.

    Attributes:
        name: The name of the object.
        annotations: A Gateway has no ``tidegate.dev/*`` annotations.
        selector: Labels of the proxies that serve the gateway; the local Envoy serves every
            gateway.
        servers: Its ports.
    """

    name: ObjectName
    annotations: NoAnnotations = field(default_factory=NoAnnotations)
    selector: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[Server, ...]
