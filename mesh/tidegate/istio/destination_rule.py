"""DestinationRule: the subsets of a host, and how its endpoints are called."""

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from tidegate.istio.annotations import DestinationRuleAnnotations
from tidegate.istio.names import ObjectName
from tidegate.istio.shapes import HeaderName, HostName, Inside, Message, Positive, Range, SubsetName

__all__ = [
    "ClientTls",
    "ClientTlsMode",
    "ConnectionPool",
    "ConsistentHash",
    "DestinationRule",
    "H2UpgradePolicy",
    "Http2KeepAlive",
    "HttpCookie",
    "HttpSettings",
    "LoadBalancer",
    "Maglev",
    "OutlierDetection",
    "PortTrafficPolicy",
    "RetryBudget",
    "RingHash",
    "SimpleLoadBalancer",
    "Subset",
    "TcpKeepalive",
    "TcpSettings",
    "TrafficPolicy",
    "Warmup",
]

_INT32 = Range(0, 2**31 - 1)
_UINT32 = Range(0, 2**32 - 1)
_PERCENT = Range(0, 100)
_PORT = Range(1, 65535)


class SimpleLoadBalancer(enum.Enum):
    """How one of the endpoints is chosen, by Istio's word."""

    UNSPECIFIED = "UNSPECIFIED"
    RANDOM = "RANDOM"
    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"
    LEAST_CONN = "LEAST_CONN"
    PASSTHROUGH = "PASSTHROUGH"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCookie(Message):
    """A cookie that is hashed.

    Attributes:
        name: its name.
        path: its path, where Envoy makes it.
        ttl: its lifetime, where Envoy makes it; 0 is a session cookie.
    """

    OPAQUE = frozenset({"attributes"})

    name: str
    path: str | None = None
    ttl: dt.timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RingHash(Message):
    """A ring of hashes.

    Attributes:
        minimum_ring_size: least number of places on the ring.
    """

    minimum_ring_size: Annotated[int, Range(0, 8_388_608)] = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Maglev(Message):
    """A table of hashes (Eisenbud et al. 2016).

    Attributes:
        table_size: places in the table, a prime.
    """

    table_size: Annotated[int, Range(2, 5_000_010)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentHash(Message):
    """Requests that are alike go to the same endpoint.

    Attributes:
        http_header_name: the header that is hashed.
        http_cookie: the cookie that is hashed.
        use_source_ip: whether the client's address is hashed.
        http_query_parameter_name: the query parameter that is hashed.
        ring_hash: a ring; the default.
        maglev: a Maglev table, instead of a ring.
        minimum_ring_size: deprecated by Istio for ``ringHash.minimumRingSize``.
    """

    http_header_name: HeaderName | None = None
    http_cookie: HttpCookie | None = None
    use_source_ip: bool | None = None
    http_query_parameter_name: str | None = None
    ring_hash: RingHash | None = None
    maglev: Maglev | None = None
    minimum_ring_size: Annotated[int | None, Range(0, 8_388_608)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup(Message):
    """A new endpoint's share grows over a time.

    Attributes:
        duration: how long.
        minimum_percent: share at its start, in percent.
        aggression: how the share grows: 1 is linear, more is faster at first.
    """

    duration: Annotated[dt.timedelta, Positive()]
    minimum_percent: Annotated[float, _PERCENT] = 10.0
    aggression: Annotated[float, Range(0, 1e6)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancer(Message):
    """How an endpoint is chosen.

    Attributes:
        simple: one of Istio's algorithms; ``LEAST_REQUEST`` is the default.
        consistent_hash: by hash, instead of ``simple``.
        warmup: how a new endpoint's share grows.
        warmup_duration_secs: deprecated by Istio for ``warmup``.
    """

    OPAQUE = frozenset({"localityLbSetting", "zoneAwareLbSetting"})

    simple: SimpleLoadBalancer | None = None
    consistent_hash: ConsistentHash | None = None
    warmup: Warmup | None = None
    warmup_duration_secs: Annotated[dt.timedelta | None, Positive()] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpKeepalive(Message):
    """TCP's own probes of an idle connection.

    Attributes:
        probes: unanswered probes after which the connection is dead.
        time: idle time before the first probe.
        interval: time between probes.
    """

    probes: Annotated[int | None, _UINT32] = None
    time: Annotated[dt.timedelta | None, Positive()] = None
    interval: Annotated[dt.timedelta | None, Positive()] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSettings(Message):
    """Connections to the endpoints.

    Attributes:
        max_connections: most connections to one host.
        connect_timeout: time for a connection to be made; 10 s without it.
        tcp_keepalive: TCP's own probes.
        max_connection_duration: longest life of a connection.
    """

    OPAQUE = frozenset({"idleTimeout"})

    max_connections: Annotated[int | None, _INT32] = None
    connect_timeout: Annotated[dt.timedelta | None, Positive()] = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Annotated[dt.timedelta | None, Positive()] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2KeepAlive(Message):
    """HTTP/2 pings to the endpoints.

    Attributes:
        interval: time between pings.
        timeout: time for the answer, after which the connection is closed.
    """

    interval: Annotated[dt.timedelta | None, Positive()] = None
    timeout: Annotated[dt.timedelta | None, Positive()] = None


class H2UpgradePolicy(enum.Enum):
    """Whether HTTP/1.1 requests go on as HTTP/2."""

    DEFAULT = "DEFAULT"
    DO_NOT_UPGRADE = "DO_NOT_UPGRADE"
    UPGRADE = "UPGRADE"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings(Message):
    """Requests to the endpoints.

    Attributes:
        http1_max_pending_requests: most requests that wait for a connection.
        http2_max_requests: most requests at a time to the host.
        max_requests_per_connection: most requests over one connection; 0 is no limit.
        max_retries: most retries at a time to the host.
        idle_timeout: a connection without requests is closed after this time.
        h2_upgrade_policy: whether HTTP/1.1 requests go on as HTTP/2.
        use_client_protocol: whether the client's protocol is kept.
        max_concurrent_streams: most streams on one HTTP/2 connection.
        http2_keep_alive: HTTP/2 pings.
    """

    http1_max_pending_requests: Annotated[int | None, _INT32] = None
    http2_max_requests: Annotated[int | None, _INT32] = None
    max_requests_per_connection: Annotated[int | None, _INT32] = None
    max_retries: Annotated[int | None, _INT32] = None
    idle_timeout: Annotated[dt.timedelta | None, Positive()] = None
    h2_upgrade_policy: H2UpgradePolicy = H2UpgradePolicy.DEFAULT
    use_client_protocol: bool = False
    max_concurrent_streams: Annotated[int | None, _INT32] = None
    http2_keep_alive: Http2KeepAlive | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPool(Message):
    """Limits of connections and requests to a host.

    Attributes:
        tcp: connections.
        http: requests.
    """

    tcp: TcpSettings | None = None
    http: HttpSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection(Message):
    """When an endpoint that fails is left out for a time.

    Attributes:
        consecutive_5xx_errors: failures in a row that eject it; 0 turns it off, 5 without it.
        consecutive_gateway_errors: failures in a row of the kind 502, 503, 504; off without it.
        split_external_local_origin_errors: whether failures to connect count apart.
        consecutive_local_origin_failures: failures to connect in a row; only when they count apart.
        interval: time between looks; 10 s without it.
        base_ejection_time: time out, times how often it was out before; 30 s without it.
        max_ejection_percent: most endpoints that may be out, in percent; 10 without it.
        min_health_percent: below this share of healthy endpoints nobody is ejected; 0 without it.
    """

    OPAQUE = frozenset({"consecutiveErrors", "outlierDetectionHttpErrorCodes"})

    consecutive_5xx_errors: Annotated[int | None, _UINT32] = None
    consecutive_gateway_errors: Annotated[int | None, _UINT32] = None
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: Annotated[int | None, _UINT32] = None
    interval: Annotated[dt.timedelta | None, Positive()] = None
    base_ejection_time: Annotated[dt.timedelta | None, Positive()] = None
    max_ejection_percent: Annotated[int | None, _PERCENT] = None
    min_health_percent: Annotated[int | None, _PERCENT] = None


class ClientTlsMode(enum.Enum):
    """Whether connections to the endpoints are secured."""

    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls(Message):
    """TLS to the endpoints.

    Attributes:
        mode: whether, and whether with a certificate of one's own.
        client_certificate: file of one's own certificate chain.
        private_key: file of its key.
        ca_certificates: file of the authorities that servers' certificates are checked against;
            the system's without it.
        ca_crl: file of revoked certificates.
        subject_alt_names: names of which a server's certificate must have one.
        sni: name that is asked for.
        insecure_skip_verify: whether servers' certificates are not checked.
    """

    OPAQUE = frozenset({"credentialName"})

    mode: ClientTlsMode = ClientTlsMode.DISABLE
    client_certificate: str | None = None
    private_key: str | None = None
    ca_certificates: str | None = None
    ca_crl: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    sni: str | None = None
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget(Message):
    """Most retries at a time, relative to the requests at that time.

    Attributes:
        percent: of the requests in progress, 0 to 100.
        min_retry_concurrency: retries that are always allowed.
    """

    OPAQUE = frozenset({"budgetInterval"})

    percent: Annotated[float, _PERCENT] = 20.0
    min_retry_concurrency: Annotated[int, _UINT32] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PortTrafficPolicy(Message):
    """How one port is called. It inherits nothing: what it leaves out has Istio's defaults.

    Attributes:
        port: the host's port.
        load_balancer: how an endpoint is chosen.
        connection_pool: limits.
        outlier_detection: when an endpoint is left out.
        tls: TLS to the endpoints.
    """

    port: Annotated[int, Inside("number"), _PORT]
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy(Message):
    """How a host, or a subset of it, is called.

    Attributes:
        load_balancer: how an endpoint is chosen.
        connection_pool: limits.
        outlier_detection: when an endpoint is left out.
        tls: TLS to the endpoints.
        port_level_settings: what holds for single ports instead of all of the above.
        retry_budget: most retries at a time.
    """

    OPAQUE = frozenset({"tunnel", "proxyProtocol"})

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    retry_budget: RetryBudget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset(Message):
    """Some endpoints of a host.

    Attributes:
        name: what routes call it.
        labels: what an endpoint's labels must contain; every endpoint without any.
        traffic_policy: how it is called; each part stands instead of that of the rule. It counts
            only for requests whose route names the subset.
    """

    name: SubsetName
    labels: Mapping[str, str] = field(default_factory=dict)
    traffic_policy: TrafficPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRule(Message):
    """The subsets of a host, and how it is called.

    Attributes:
        name: what the object is called.
        annotations: its ``tidegate.dev/*`` annotations.
        host: the host.
        traffic_policy: how it is called.
        subsets: parts of it.
        export_to: ``*`` for every namespace, ``.`` for its own; left out, it is ``*``, but Istio
            merges only rules of a host that say the same.
    """

    OPAQUE = frozenset({"workloadSelector"})

    name: ObjectName
    annotations: DestinationRuleAnnotations = field(default_factory=DestinationRuleAnnotations)
    host: HostName
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
