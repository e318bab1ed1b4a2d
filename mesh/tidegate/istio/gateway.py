"""Gateway: the ports at which traffic enters, and the domains that are taken there."""

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
    """What is spoken at a port of a gateway; Istio takes any case of letters."""

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
        number: the port on which is listened.
        name: what it is called.
        protocol: what is spoken there; ``HTTPS`` needs ``tls``, and at ``GRPC-WEB`` browsers are
            served too.
    """

    OPAQUE = frozenset({"targetPort"})

    number: Annotated[int, Range(1, 65535)]
    name: str
    protocol: GatewayProtocol


class ServerTlsMode(enum.Enum):
    """Whether clients show a certificate too."""

    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    PASSTHROUGH = "PASSTHROUGH"
    AUTO_PASSTHROUGH = "AUTO_PASSTHROUGH"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"
    OPTIONAL_MUTUAL = "OPTIONAL_MUTUAL"


class TlsVersion(enum.Enum):
    """A version of TLS, by Istio's word."""

    TLS_AUTO = "TLS_AUTO"
    TLSV1_0 = "TLSV1_0"
    TLSV1_1 = "TLSV1_1"
    TLSV1_2 = "TLSV1_2"
    TLSV1_3 = "TLSV1_3"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls(Message):
    """How connections of clients are secured.

    Attributes:
        mode: whether clients show a certificate too.
        server_certificate: file of the certificate chain.
        private_key: file of its key.
        ca_certificates: file of the authorities that clients' certificates are checked against.
        ca_crl: file of revoked certificates.
        subject_alt_names: names of which a client's certificate must have one.
        min_protocol_version: oldest version that is taken; TLS 1.2 without it.
        max_protocol_version: newest version that is taken; TLS 1.3 without it.
        cipher_suites: ciphers that are taken, of TLS 1.2; Envoy's own list without it.
        https_redirect: whether plain HTTP is answered with a redirect; only at an HTTP port.
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
    """One port of a gateway and the domains that are taken there.

    Attributes:
        port: the port.
        hosts: domains, ``*`` for any; ``namespace/domain`` takes only VirtualServices of the
            namespace, ``.`` being the gateway's own.
        tls: how connections are secured.
        name: what it is called.
    """

    OPAQUE = frozenset({"bind", "defaultEndpoint"})

    port: GatewayPort
    hosts: tuple[str, ...]
    tls: ServerTls | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway(Message):
    """Where traffic enters.

    Attributes:
        name: what the object is called.
        annotations: it has none of ``tidegate.dev``.
        selector: labels of the proxies that take it; the local Envoy takes every gateway.
        servers: its ports.
    """

    name: ObjectName
    annotations: NoAnnotations = field(default_factory=NoAnnotations)
    selector: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[Server, ...]
