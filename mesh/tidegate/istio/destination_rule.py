"""DestinationRule: the subsets of a host, and the traffic policy of its endpoints."""

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
    """A load-balancing algorithm, by Istio's name."""

    UNSPECIFIED = "UNSPECIFIED"
    RANDOM = "RANDOM"
    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"
    LEAST_CONN = "LEAST_CONN"
    PASSTHROUGH = "PASSTHROUGH"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCookie(Message):
    """A cookie to hash.

    Attributes:
        name: The name of the cookie.
        path: The path of a cookie that Envoy creates.
        ttl: The lifetime of a cookie that Envoy creates; 0 is a session cookie.
    """

    OPAQUE = frozenset({"attributes"})

    name: str
    path: str | None = None
    ttl: dt.timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RingHash(Message):
    """A hash ring.

    Attributes:
        minimum_ring_size: Least number of entries on the ring.
    """

    minimum_ring_size: Annotated[int, Range(0, 8_388_608)] = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Maglev(Message):
    """A Maglev hash table (Eisenbud et al. 2016).

    Attributes:
        table_size: Number of entries in the table, a prime.
    """

    table_size: Annotated[int, Range(2, 5_000_010)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentHash(Message):
    """Load balancing by hash: requests with the same hash go to the same endpoint.

    Attributes:
        http_header_name: A header to hash.
        http_cookie: A cookie to hash.
        use_source_ip: Whether to hash the client's address.
        http_query_parameter_name: A query parameter to hash.
        ring_hash: A hash ring; the default.
        maglev: A Maglev table, instead of a ring.
        minimum_ring_size: Deprecated by Istio for ``ringHash.minimumRingSize``.
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
    """The share of a new endpoint grows over some time.

    Attributes:
        duration: How long the share grows.
        minimum_percent: The share at the start, in percent.
        aggression: How the share grows: 1 is linear, more is faster at first.
    """

    duration: Annotated[dt.timedelta, Positive()]
    minimum_percent: Annotated[float, _PERCENT] = 10.0
    aggression: Annotated[float, Range(0, 1e6)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancer(Message):
    """How the proxy picks an endpoint.

    Attributes:
        simple: One of Istio's algorithms; ``LEAST_REQUEST`` is the default.
        consistent_hash: By hash, instead of ``simple``.
        warmup: How the share of a new endpoint grows.
        warmup_duration_secs: Deprecated by Istio for ``warmup``.
    """

    OPAQUE = frozenset({"localityLbSetting", "zoneAwareLbSetting"})

    simple: SimpleLoadBalancer | None = None
    consistent_hash: ConsistentHash | None = None
    warmup: Warmup | None = None
    warmup_duration_secs: Annotated[dt.timedelta | None, Positive()] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpKeepalive(Message):
    """TCP keepalive probes on an idle connection.

    Attributes:
        probes: Unanswered probes after which the connection is dead.
        time: Idle time before the first probe.
        interval: Time between probes.
    """

    probes: Annotated[int | None, _UINT32] = None
    time: Annotated[dt.timedelta | None, Positive()] = None
    interval: Annotated[dt.timedelta | None, Positive()] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSettings(Message):
    """Settings of connections to the endpoints.

    Attributes:
        max_connections: Most connections to one host.
        connect_timeout: Timeout of a new connection; 10 s without it.
        tcp_keepalive: TCP keepalive probes.
        max_connection_duration: Longest lifetime of a connection.
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
        interval: Time between pings.
        timeout: Timeout of the ping's answer. After it the proxy closes the connection.
    """

    interval: Annotated[dt.timedelta | None, Positive()] = None
    timeout: Annotated[dt.timedelta | None, Positive()] = None


class H2UpgradePolicy(enum.Enum):
    """Whether the proxy sends HTTP/1.1 requests on as HTTP/2."""

    DEFAULT = "DEFAULT"
    DO_NOT_UPGRADE = "DO_NOT_UPGRADE"
    UPGRADE = "UPGRADE"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings(Message):
    """Settings of requests to the endpoints.

    Attributes:
        http1_max_pending_requests: Most requests that wait for a connection.
        http2_max_requests: Most concurrent requests to the host.
        max_requests_per_connection: Most requests over one connection; 0 is no limit.
        max_retries: Most concurrent retries to the host.
        idle_timeout: Time without requests after which the proxy closes a connection.
        h2_upgrade_policy: Whether the proxy sends HTTP/1.1 requests on as HTTP/2.
        use_client_protocol: Whether the proxy keeps the client's protocol.
        max_concurrent_streams: Most streams on one HTTP/2 connection.
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
        tcp: Settings of connections.
        http: Settings of requests.
    """

    tcp: TcpSettings | None = None
    http: HttpSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection(Message):
    """When the proxy ejects a failing endpoint for some time.

    Attributes:
        consecutive_5xx_errors: Consecutive failures that eject an endpoint; 0 turns it off, 5
            without it.
        consecutive_gateway_errors: Consecutive failures with 502, 503 or 504 that eject an
            endpoint; off without it.
        split_external_local_origin_errors: Whether failures to connect count separately.
        consecutive_local_origin_failures: Consecutive failures to connect that eject an endpoint,
            where these count separately.
        interval: Time between two checks; 10 s without it.
        base_ejection_time: Time of an ejection, multiplied by the number of ejections so far; 30 s
            without it.
        max_ejection_percent: Most endpoints that may be ejected, in percent; 10 without it.
        min_health_percent: Share of healthy endpoints below which no endpoint is ejected; 0 without
            it.
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
    """Whether the proxy uses TLS to the endpoints."""

    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls(Message):
    """TLS to the endpoints.

    Attributes:
        mode: Whether the proxy uses TLS, and whether it has a certificate of its own.
        client_certificate: File of the proxy's certificate chain.
        private_key: File of its private key.
        ca_certificates: File of the authorities that verify a server's certificate; the system's
            without it.
        ca_crl: File of revoked certificates.
        subject_alt_names: Names of which a server's certificate must have one.
        sni: The server name (SNI) to ask for.
        insecure_skip_verify: Whether the proxy does not verify servers' certificates.
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
    """Most concurrent retries, relative to the number of active requests.

    Attributes:
        percent: Share of the active requests, 0 to 100.
        min_retry_concurrency: Concurrent retries that are always allowed.
    """

    OPAQUE = frozenset({"budgetInterval"})

    percent: Annotated[float, _PERCENT] = 20.0
    min_retry_concurrency: Annotated[int, _UINT32] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PortTrafficPolicy(Message):
    """The traffic policy of one port. It inherits nothing: a missing part has Istio's default.

    Attributes:
        port: The host's port.
        load_balancer: How the proxy picks an endpoint.
        connection_pool: Limits of connections and requests.
        outlier_detection: When the proxy ejects an endpoint.
        tls: TLS to the endpoints.
    """

    port: Annotated[int, Inside("number"), _PORT]
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy(Message):
    """How the proxy calls a host, or a subset of it.

    Attributes:
        load_balancer: How the proxy picks an endpoint.
        connection_pool: Limits of connections and requests.
        outlier_detection: When the proxy ejects an endpoint.
        tls: TLS to the endpoints.
        port_level_settings: Policies of single ports, instead of all of the above.
        retry_budget: Most concurrent retries.
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
        name: The name that routes use.
        labels: Labels that an endpoint must have; every endpoint without any.
        traffic_policy: The policy of the subset. Each part replaces that of the rule. It applies
            only to requests whose route names the subset.
    """

    name: SubsetName
    labels: Mapping[str, str] = field(default_factory=dict)
    traffic_policy: TrafficPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRule(Message):
    """The subsets and the traffic policy of a host.

    Attributes:
        name: The name of the object.
        annotations: Its ``tidegate.dev/*`` annotations.
        host: The host.
        traffic_policy: How the proxy calls the host.
        subsets: Subsets of the host.
        export_to: ``*`` for every namespace, ``.`` for its own. The default is ``*``, but Istio
            merges only rules of a host that are equal here.
    """

    OPAQUE = frozenset({"workloadSelector"})

    name: ObjectName
    annotations: DestinationRuleAnnotations = field(default_factory=DestinationRuleAnnotations)
    host: HostName
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
