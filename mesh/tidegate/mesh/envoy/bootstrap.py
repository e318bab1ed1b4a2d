"""Envoy's bootstrap: its node id, the address of its controller, and its own limits.

Listeners, routes, clusters and endpoints come from the controller, over one delta ADS stream. So
the bootstrap never changes while Envoy runs. While the controller is down, Envoy keeps its
configuration, gets no updates, and tries to reconnect twice a second.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import (
    address_pb2,
    backoff_pb2,
    base_pb2,
    config_source_pb2,
    grpc_service_pb2,
    protocol_pb2,
)
from envoy.config.metrics.v3 import stats_pb2
from envoy.config.overload.v3 import overload_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import duration_pb2

from tidegate.mesh.envoy.addresses import Address, Collector

__all__ = [
    "ACCESS_LOG_CLUSTER",
    "ADS_CLUSTER",
    "NODE_METADATA",
    "TRACES_CLUSTER",
    "EnvoySettings",
    "bootstrap",
]

ADS_CLUSTER: Final = "tidegate-ads"
"""Static cluster of the controller: discovery and load reports."""

ACCESS_LOG_CLUSTER: Final = "tidegate-access-log"
"""Static cluster that takes the access log."""

TRACES_CLUSTER: Final = "tidegate-traces"
"""Static cluster that takes spans."""

NODE_METADATA: Final[Mapping[str, str]] = {"TIDEGATE_PROXY": "ingress"}
"""The node metadata by which a controller knows which resources an Envoy gets."""

_V3: Final = config_source_pb2.ApiVersion.V3

# Envoy finds a restarted controller within a second; its default backoff grows to 30 s.
_RETRY_FIRST, _RETRY_LONGEST = timedelta(milliseconds=50), timedelta(milliseconds=500)
_CONNECT_TIMEOUT = timedelta(seconds=1)
# Longer than the 10 s that a Tidegate server requires between two pings.
_PING_INTERVAL, _PING_TIMEOUT = timedelta(seconds=15), timedelta(seconds=5)

# By default Envoy sends spans in batches of five, which cost the collector more than the spans do,
# and the rest after five seconds, which is too late for a user who asks for the last trace. By
# default it also rejects a response with an expression of more than 100 RE2 instructions; the limit
# here is the one of Istio's bootstrap.
_RUNTIME: Final = {
    "re2.max_program_size.error_level": 32_768,
    "tracing.opentelemetry.flush_interval_ms": 500,
    "tracing.opentelemetry.min_flush_spans": 512,
}

# Each cluster has some hundred statistics. Envoy keeps only those that people look at; the
# controller gets its data from access logs and load reports.
_STAT_PREFIXES: Final = (
    "access_logs.",
    "cluster_manager.",
    "control_plane.",
    "http.",
    "listener.",
    "listener_manager.",
    "overload.",
    "server.",
    "tracing.",
    *(f"cluster.{name}." for name in (ADS_CLUSTER, ACCESS_LOG_CLUSTER, TRACES_CLUSTER)),
)
_STAT_SUFFIXES: Final = (
    ".membership_healthy",
    ".membership_total",
    ".outlier_detection.ejections_active",
    ".upstream_cx_active",
    ".upstream_cx_connect_fail",
    ".upstream_cx_none_healthy",
    ".upstream_cx_overflow",
    ".upstream_cx_total",
    ".upstream_rq_active",
    ".upstream_rq_pending_overflow",
    ".upstream_rq_retry",
    ".upstream_rq_timeout",
    ".upstream_rq_total",
    *(f".upstream_rq_{status}xx" for status in range(2, 6)),
)

# As in Istio's bootstrap, so that the same queries find the clusters of a laptop and of a cluster.
# Without it Envoy ends the name of a cluster at its first dot, and the rest becomes a part of the
# metric's name.
_CLUSTER_TAG: Final = stats_pb2.TagSpecifier(
    tag_name="cluster_name", regex=r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings:
    """The settings of one Envoy.

    Attributes:
        node_id: Its name among the proxies of the controller.
        controller: The gRPC address of the controller.
        traces: The collector for spans; ``None`` to send none.
        ca_file: A PEM file with the authorities that may sign a collector's certificate.
        admin_port: The port of the admin interface, on this host only; 0 takes a free one.
        max_connections: Open connections of clients, at most; Envoy closes any further ones.
    """

    node_id: str
    controller: Address
    traces: Collector | None
    ca_file: str = ""
    admin_port: int = 0
    max_connections: int = 10_000


def bootstrap(settings: EnvoySettings) -> bootstrap_pb2.Bootstrap:
    """Builds the bootstrap of an Envoy."""
    node = base_pb2.Node(id=settings.node_id, cluster="ingress")
    node.metadata.update(NODE_METADATA)
    return bootstrap_pb2.Bootstrap(
        node=node,
        static_resources=bootstrap_pb2.Bootstrap.StaticResources(
            clusters=[
                _cluster(ADS_CLUSTER, settings.controller),
                _cluster(ACCESS_LOG_CLUSTER, settings.controller),
                _traces_cluster(settings),
            ]
        ),
        dynamic_resources=bootstrap_pb2.Bootstrap.DynamicResources(
            ads_config=_stream(config_source_pb2.ApiConfigSource.DELTA_GRPC),
            cds_config=_over_ads(),
            lds_config=_over_ads(),
        ),
        cluster_manager=bootstrap_pb2.ClusterManager(
            load_stats_config=_stream(config_source_pb2.ApiConfigSource.GRPC)
        ),
        admin=bootstrap_pb2.Admin(
            address=_socket(Address("127.0.0.1", settings.admin_port)),
            # The admin interface must answer when there are too many connections.
            ignore_global_conn_limit=True,
        ),
        overload_manager=overload_pb2.OverloadManager(
            resource_monitors=[_connection_limit(settings.max_connections)]
        ),
        stats_config=stats_pb2.StatsConfig(stats_matcher=_kept_stats(), stats_tags=[_CLUSTER_TAG]),
        # No sink takes statistics. `Admin.workers_caught_up` relies on a read of them to start a
        # flush, and periodic flushes would disturb it.
        stats_flush_on_admin=True,
        layered_runtime=bootstrap_pb2.LayeredRuntime(layers=[_runtime()]),
        # One Envoy never calls many of the clusters of a mesh.
        deferred_stat_options=bootstrap_pb2.Bootstrap.DeferredStatOptions(
            enable_deferred_creation_stats=True
        ),
    )


def _stream(
    kind: config_source_pb2.ApiConfigSource.ApiType,
) -> config_source_pb2.ApiConfigSource:
    """A stream to the controller that Envoy reopens soon after it ends."""
    backoff = backoff_pb2.BackoffStrategy(
        base_interval=_duration(_RETRY_FIRST), max_interval=_duration(_RETRY_LONGEST)
    )
    service = grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(
            cluster_name=ADS_CLUSTER, retry_policy=base_pb2.RetryPolicy(retry_back_off=backoff)
        )
    )
    return config_source_pb2.ApiConfigSource(
        api_type=kind,
        transport_api_version=_V3,
        grpc_services=[service],
        set_node_on_first_message_only=True,
    )


def _over_ads() -> config_source_pb2.ConfigSource:
    # No timeout: an Envoy without listeners is not ready, however long the controller takes.
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=_V3,
        initial_fetch_timeout=duration_pb2.Duration(),
    )


def _cluster(name: str, address: Address, *, tls_ca_file: str | None = None) -> cluster_pb2.Cluster:
    cluster = cluster_pb2.Cluster(
        name=name,
        # The address of a name may change while Envoy runs.
        type=cluster_pb2.Cluster.STATIC if _is_ip(address.host) else cluster_pb2.Cluster.STRICT_DNS,
        connect_timeout=_duration(_CONNECT_TIMEOUT),
    )
    cluster.load_assignment.cluster_name = name
    endpoint = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint
    endpoint.address.CopyFrom(_socket(address))
    keepalive = protocol_pb2.KeepaliveSettings(
        interval=_duration(_PING_INTERVAL), timeout=_duration(_PING_TIMEOUT)
    )
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.connection_keepalive.CopyFrom(keepalive)
    cluster.typed_extension_protocol_options[
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    ].Pack(options)
    if tls_ca_file is not None:
        cluster.transport_socket.CopyFrom(_tls(address.host, tls_ca_file))
    return cluster


def _traces_cluster(settings: EnvoySettings) -> cluster_pb2.Cluster:
    """The cluster for spans. Without a collector it has no endpoints, as the listeners name it.

    Envoy's own switch for tracing (``tracing.global_enabled``) is not enough: it tells the servers
    behind Envoy not to sample, and so removes their spans from a client's trace.
    """
    collector = settings.traces
    if collector is None:
        cluster = cluster_pb2.Cluster(name=TRACES_CLUSTER, type=cluster_pb2.Cluster.STATIC)
        cluster.load_assignment.cluster_name = TRACES_CLUSTER
        return cluster
    ca_file = settings.ca_file if collector.tls else None
    return _cluster(TRACES_CLUSTER, collector.address, tls_ca_file=ca_file)


def _tls(host: str, ca_file: str) -> base_pb2.TransportSocket:
    """TLS that requires a certificate for the host's name from one of the authorities."""
    trusted = common_pb2.CertificateValidationContext(
        trusted_ca=base_pb2.DataSource(filename=ca_file)
    )
    san = trusted.match_typed_subject_alt_names.add(
        san_type=common_pb2.SubjectAltNameMatcher.IP_ADDRESS
        if _is_ip(host)
        else common_pb2.SubjectAltNameMatcher.DNS
    )
    san.matcher.exact = host
    context = tls_pb2.UpstreamTlsContext(
        sni=host,
        common_tls_context=tls_pb2.CommonTlsContext(
            validation_context=trusted, alpn_protocols=["h2"]
        ),
    )
    tls = base_pb2.TransportSocket(name="envoy.transport_sockets.tls")
    tls.typed_config.Pack(context)
    return tls


def _connection_limit(connections: int) -> overload_pb2.ResourceMonitor:
    config = downstream_connections_pb2.DownstreamConnectionsConfig(
        max_active_downstream_connections=connections
    )
    monitor = overload_pb2.ResourceMonitor(
        name="envoy.resource_monitors.global_downstream_max_connections"
    )
    monitor.typed_config.Pack(config)
    return monitor


def _runtime() -> bootstrap_pb2.RuntimeLayer:
    layer = bootstrap_pb2.RuntimeLayer(name="static")
    layer.static_layer.update(_RUNTIME)
    return layer


def _kept_stats() -> stats_pb2.StatsMatcher:
    patterns = [string_pb2.StringMatcher(prefix=prefix) for prefix in _STAT_PREFIXES]
    patterns += [string_pb2.StringMatcher(suffix=suffix) for suffix in _STAT_SUFFIXES]
    return stats_pb2.StatsMatcher(inclusion_list=string_pb2.ListStringMatcher(patterns=patterns))


def _socket(address: Address) -> address_pb2.Address:
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=address.host, port_value=address.port)
    )


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _duration(length: timedelta) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromTimedelta(length)
    return message
