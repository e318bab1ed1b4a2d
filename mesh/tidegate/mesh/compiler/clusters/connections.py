"""Connections of a cluster to its endpoints: limits, HTTP versions, TLS, outlier detection."""

import datetime as dt
from typing import Final, TypeAlias

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, protocol_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf.wrappers_pb2 import UInt32Value

from tidegate.istio.destination_rule import (
    ClientTls,
    ClientTlsMode,
    ConnectionPool,
    H2UpgradePolicy,
    HttpSettings,
    OutlierDetection,
    RetryBudget,
    TcpKeepalive,
    TcpSettings,
)
from tidegate.mesh.compiler.hosts.upstreams import ClusterPolicy
from tidegate.mesh.compiler.protobuf import duration, packed

__all__ = ["connect", "max_requests"]

_UNLIMITED: Final = 2**32 - 1
_CONNECT_TIMEOUT: Final = dt.timedelta(seconds=10)
_MAX_STREAMS: Final = 2**30
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_SYSTEM_AUTHORITIES: Final = "/etc/ssl/certs/ca-certificates.crt"

_HttpOptions: TypeAlias = http_protocol_options_pb2.HttpProtocolOptions


def connect(cluster: cluster_pb2.Cluster, policy: ClusterPolicy, *, http2: bool) -> None:
    """Sets how Envoy connects to the endpoints of a cluster.

    Args:
        cluster: The cluster.
        policy: Its traffic policy.
        http2: Whether the port's protocol is one over HTTP/2.
    """
    pool = policy.connection_pool or ConnectionPool()
    tcp, http = pool.tcp or TcpSettings(), pool.http or HttpSettings()
    cluster.connect_timeout.CopyFrom(duration(tcp.connect_timeout or _CONNECT_TIMEOUT))
    cluster.circuit_breakers.CopyFrom(_circuit_breakers(tcp, http, policy.retry_budget))
    if tcp.tcp_keepalive:
        cluster.upstream_connection_options.tcp_keepalive.CopyFrom(_keepalive(tcp.tcp_keepalive))
    options = _http_options(tcp, http, http2=http2)
    tls = policy.tls
    if tls and tls.mode is not ClientTlsMode.DISABLE:
        _secure(cluster, options, tls)
    if options.ByteSize():
        if options.WhichOneof("upstream_protocol_options") is None:
            options.explicit_http_config.http_protocol_options.SetInParent()
        cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(packed(options))
    outliers = policy.outlier_detection
    if outliers:
        always = policy.annotations.always_eject_one_host
        cluster.outlier_detection.CopyFrom(_outliers(outliers, always_one=always))
        panic = outliers.min_health_percent or 0
        cluster.common_lb_config.healthy_panic_threshold.value = panic


def max_requests(policy: ClusterPolicy) -> int | None:
    """The most requests at a time; None without a limit."""
    http = policy.connection_pool.http if policy.connection_pool else None
    return (http.http2_max_requests or None) if http else None


def _circuit_breakers(
    tcp: TcpSettings, http: HttpSettings, budget: RetryBudget | None
) -> circuit_breaker_pb2.CircuitBreakers:
    # In Istio, 0 means no limit.
    limits = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=_limit(tcp.max_connections),
        max_pending_requests=_limit(http.http1_max_pending_requests),
        max_requests=_limit(http.http2_max_requests),
        max_retries=_limit(http.max_retries),
        track_remaining=True,
    )
    if budget:
        limits.retry_budget.budget_percent.value = budget.percent
        limits.retry_budget.min_retry_concurrency.value = budget.min_retry_concurrency
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[limits])


def _limit(value: int | None) -> UInt32Value:
    return UInt32Value(value=value or _UNLIMITED)


def _http_options(tcp: TcpSettings, http: HttpSettings, *, http2: bool) -> _HttpOptions:
    options = _HttpOptions()
    upgrade = http.h2_upgrade_policy is H2UpgradePolicy.UPGRADE
    if http.use_client_protocol:
        # As in istiod, limits of streams and keepalives hold only where HTTP/2 is certain.
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    elif http2 or upgrade:
        _http2(options.explicit_http_config.http2_protocol_options, http)
    common = options.common_http_protocol_options
    if http.idle_timeout:
        common.idle_timeout.CopyFrom(duration(http.idle_timeout))
    if http.max_requests_per_connection:
        common.max_requests_per_connection.value = http.max_requests_per_connection
    if tcp.max_connection_duration:
        common.max_connection_duration.CopyFrom(duration(tcp.max_connection_duration))
    return options


def _http2(options: protocol_pb2.Http2ProtocolOptions, http: HttpSettings) -> None:
    options.max_concurrent_streams.value = http.max_concurrent_streams or _MAX_STREAMS
    alive = http.http2_keep_alive
    if alive and alive.interval:
        options.connection_keepalive.interval.CopyFrom(duration(alive.interval))
        options.connection_keepalive.timeout.CopyFrom(duration(alive.timeout or alive.interval))


def _keepalive(alive: TcpKeepalive) -> address_pb2.TcpKeepalive:
    return address_pb2.TcpKeepalive(
        keepalive_probes=_optional(alive.probes),
        keepalive_time=_seconds(alive.time),
        keepalive_interval=_seconds(alive.interval),
    )


def _optional(value: int | None) -> UInt32Value | None:
    return None if value is None else UInt32Value(value=value)


def _seconds(value: dt.timedelta | None) -> UInt32Value | None:
    return None if value is None else UInt32Value(value=max(1, round(value.total_seconds())))


def _outliers(
    outliers: OutlierDetection, *, always_one: bool
) -> outlier_detection_pb2.OutlierDetection:
    # Istio turns off the detection that compares success rates between endpoints.
    result = outlier_detection_pb2.OutlierDetection(enforcing_success_rate=UInt32Value(value=0))
    if outliers.consecutive_5xx_errors is not None:
        result.consecutive_5xx.value = outliers.consecutive_5xx_errors
        result.enforcing_consecutive_5xx.value = 100 if outliers.consecutive_5xx_errors else 0
    if outliers.consecutive_gateway_errors is not None:
        result.consecutive_gateway_failure.value = outliers.consecutive_gateway_errors
        result.enforcing_consecutive_gateway_failure.value = (
            100 if outliers.consecutive_gateway_errors else 0
        )
    if outliers.interval:
        result.interval.CopyFrom(duration(outliers.interval))
    if outliers.base_ejection_time:
        result.base_ejection_time.CopyFrom(duration(outliers.base_ejection_time))
    if outliers.max_ejection_percent:
        result.max_ejection_percent.value = outliers.max_ejection_percent
    if outliers.split_external_local_origin_errors:
        result.split_external_local_origin_errors = True
        result.enforcing_local_origin_success_rate.value = 0
        if outliers.consecutive_local_origin_failures:
            result.consecutive_local_origin_failure.value = (
                outliers.consecutive_local_origin_failures
            )
            result.enforcing_consecutive_local_origin_failure.value = 100
    if always_one:
        result.always_eject_one_host.value = True
    return result


def _secure(cluster: cluster_pb2.Cluster, options: _HttpOptions, tls: ClientTls) -> None:
    common = tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_2,
            tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
        ),
        validation_context=_validation(tls),
    )
    if tls.mode is ClientTlsMode.MUTUAL:
        common.tls_certificates.add(
            certificate_chain=base_pb2.DataSource(filename=tls.client_certificate),
            private_key=base_pb2.DataSource(filename=tls.private_key),
        )
    if options.explicit_http_config.HasField("http2_protocol_options"):
        common.alpn_protocols.append("h2")
    cluster.transport_socket.name = "envoy.transport_sockets.tls"
    cluster.transport_socket.typed_config.CopyFrom(
        packed(tls_pb2.UpstreamTlsContext(common_tls_context=common, sni=tls.sni or ""))
    )
    if not tls.sni:
        upstream = options.upstream_http_protocol_options
        upstream.auto_sni = True
        upstream.auto_san_validation = not (tls.subject_alt_names or tls.insecure_skip_verify)


def _validation(tls: ClientTls) -> common_pb2.CertificateValidationContext:
    if tls.insecure_skip_verify:
        return common_pb2.CertificateValidationContext()
    context = common_pb2.CertificateValidationContext(
        trusted_ca=base_pb2.DataSource(filename=tls.ca_certificates or _SYSTEM_AUTHORITIES),
        match_typed_subject_alt_names=[
            common_pb2.SubjectAltNameMatcher(
                san_type=kind, matcher=string_pb2.StringMatcher(exact=name)
            )
            for name in tls.subject_alt_names
            for kind in (
                common_pb2.SubjectAltNameMatcher.DNS,
                common_pb2.SubjectAltNameMatcher.URI,
            )
        ],
    )
    if tls.ca_crl:
        context.crl.filename = tls.ca_crl
    return context
