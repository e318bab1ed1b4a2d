"""Envoy configuration for access logs and traces.

The access log goes over gRPC (ALS) to the static cluster `ACCESS_LOG_CLUSTER`, and spans go over
OTLP/gRPC to `TRACES_CLUSTER`. Both clusters are in Envoy's bootstrap. gRPC messages are counted if
the filter `GRPC_STATS` stands before the router, with ``emit_filter_state``.

Mirrored copies of requests are in no access log of a listener. The router filter's upstream log has
them, beside every attempt of every request. A filter on the header that marks copies keeps the
others out, so a mesh that mirrors nothing sends nothing more.

Custom tags of the log add what an access log entry lacks: the cluster of a request for which it had
no endpoint, response flags for which the entry has no field, the timeout of the route, and the
trace of a request that came without one.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog, AccessLogFilter, HeaderFilter
from envoy.config.core.v3.config_source_pb2 import ApiVersion
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.config.trace.v3.http_tracer_pb2 import Tracing as Tracer
from envoy.config.trace.v3.opentelemetry_pb2 import OpenTelemetryConfig
from envoy.extensions.access_loggers.grpc.v3.als_pb2 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a generated name
    HttpConnectionManager,
)
from envoy.extensions.tracers.opentelemetry.resource_detectors.v3.static_config_resource_detector_pb2 import (  # noqa: E501 - a generated name
    StaticConfigResourceDetectorConfig,
)
from envoy.type.tracing.v3.custom_tag_pb2 import CustomTag
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from tidegate.mesh.resources import (
    MIRRORED_HEADER,
    ROUTE_BY_HEADERS,
    ROUTE_METADATA,
    ROUTE_TIMEOUT_MS,
)

__all__ = [
    "ACCESS_LOG_CLUSTER",
    "BY_HEADERS_TAG",
    "CLUSTER_TAG",
    "COOKIE_HEADER",
    "DEFAULT_USER_HEADERS",
    "FLAGS_TAG",
    "GRPC_STATS",
    "LOAD_TRAILER",
    "SPAN_TAG",
    "TIMEOUT_TAG",
    "TRACES_CLUSTER",
    "TRACE_TAG",
    "access_log_config",
    "mirror_log_config",
    "tracing_config",
]

ACCESS_LOG_CLUSTER: Final = "tidegate-access-log"
"""The static cluster of the bootstrap that receives access logs."""

TRACES_CLUSTER: Final = "tidegate-traces"
"""The static cluster of the bootstrap that receives spans."""

GRPC_STATS: Final = "envoy.filters.http.grpc_stats"
"""Name of the filter that counts messages, and of its filter state in the access log."""

BY_HEADERS_TAG: Final = "tidegate.route_by_headers"
CLUSTER_TAG: Final = "tidegate.upstream_cluster"
FLAGS_TAG: Final = "tidegate.response_flags"
SPAN_TAG: Final = "tidegate.span_id"
TIMEOUT_TAG: Final = "tidegate.route_timeout_ms"
TRACE_TAG: Final = "tidegate.trace_id"

# Short enough for decisions, long enough that many requests share a message.
_FLUSH_INTERVAL: Final = timedelta(milliseconds=100)
# Envoy flushes a full buffer at once. While the controller does not read, a worker of Envoy holds
# one buffer, some thousand requests. It stays below gRPC's message limit (4 MiB).
_BUFFER_BYTES: Final = 1 << 20

DEFAULT_USER_HEADERS: Final = ("x-user-id", "x-user-tier")
"""The request headers that name users, unless a setting lists others."""

_REQUEST_HEADERS: Final = ("content-type", "grpc-timeout", "traceparent")
COOKIE_HEADER: Final = "cookie"

LOAD_TRAILER: Final = "endpoint-load-metrics-bin"
"""The trailer with the load of the server (ORCA)."""

_GRPC_STATUS: Final = ("grpc-status", "grpc-message")
_TRAILERS: Final = (
    *_GRPC_STATUS,
    LOAD_TRAILER,
    "tidegate-chars-out",
    "tidegate-confidence",
    "tidegate-model",
    "tidegate-model-version",
    "tidegate-finish",
    "tidegate-queue-ms",
    "tidegate-tokens-in",
    "tidegate-tokens-out",
    "tidegate-top1",
    "tidegate-ttft-ms",
)
_TAGS: Final = {
    BY_HEADERS_TAG: f"%METADATA(ROUTE:{ROUTE_METADATA}:{ROUTE_BY_HEADERS})%",
    CLUSTER_TAG: "%UPSTREAM_CLUSTER_RAW%",
    FLAGS_TAG: "%RESPONSE_FLAGS%",
    TIMEOUT_TAG: f"%METADATA(ROUTE:{ROUTE_METADATA}:{ROUTE_TIMEOUT_MS})%",
    SPAN_TAG: "%SPAN_ID%",
    TRACE_TAG: "%TRACE_ID%",
}


def access_log_config(
    user_headers: Iterable[str] = DEFAULT_USER_HEADERS, *, cookies: bool = False
) -> AccessLog:
    """Returns the access log that sends one entry for each finished request.

    Args:
        user_headers: The request headers that name users.
        cookies: Whether to log the cookies of requests.
    """
    return _access_log("tidegate", user_headers, cookies=cookies)


def mirror_log_config(
    user_headers: Iterable[str] = DEFAULT_USER_HEADERS, *, cookies: bool = False
) -> AccessLog:
    """Returns the upstream log that sends one entry for each mirrored copy of a request.

    Args:
        user_headers: The request headers that name users.
        cookies: Whether to log the cookies of requests.
    """
    log = _access_log("tidegate-mirrored", (*user_headers, MIRRORED_HEADER), cookies=cookies)
    marked = HeaderMatcher(name=MIRRORED_HEADER, present_match=True)
    log.filter.CopyFrom(AccessLogFilter(header_filter=HeaderFilter(header=marked)))
    return log


def tracing_config(
    service_name: str = "ingress", sampled_percent: float = 100.0, host_name: str = ""
) -> HttpConnectionManager.Tracing:
    """Returns the tracing of Envoy: one span for a request and one for each upstream attempt.

    A request with a ``traceparent`` keeps its trace and its sampling decision.

    Args:
        service_name: The ``service.name`` of the spans' resource.
        sampled_percent: Percentage of the requests without a ``traceparent`` that are traced, 0 to
            100.
        host_name: The ``host.name`` of the spans' resource; empty for none.
    """
    tracer = Tracer.Http(name="envoy.tracers.opentelemetry")
    tracer.typed_config.Pack(
        OpenTelemetryConfig(
            grpc_service=_grpc_service(TRACES_CLUSTER),
            service_name=service_name,
            resource_detectors=[_host_detector(host_name)] if host_name else [],
        )
    )
    return HttpConnectionManager.Tracing(
        provider=tracer,
        random_sampling=Percent(value=sampled_percent),
        operation="%REQ(:PATH)%",
        spawn_upstream_span=BoolValue(value=True),
    )


def _host_detector(host_name: str) -> TypedExtensionConfig:
    """Returns what adds the host's name to the resource of Envoy's spans."""
    detector = TypedExtensionConfig(
        name="envoy.tracers.opentelemetry.resource_detectors.static_config"
    )
    detector.typed_config.Pack(
        StaticConfigResourceDetectorConfig(attributes={"host.name": host_name})
    )
    return detector


def _access_log(name: str, user_headers: Iterable[str], *, cookies: bool) -> AccessLog:
    config = HttpGrpcAccessLogConfig(
        common_config=CommonGrpcAccessLogConfig(
            log_name=name,
            grpc_service=_grpc_service(ACCESS_LOG_CLUSTER),
            transport_api_version=ApiVersion.V3,
            buffer_flush_interval=_duration(_FLUSH_INTERVAL),
            buffer_size_bytes=UInt32Value(value=_BUFFER_BYTES),
            filter_state_objects_to_log=[GRPC_STATS],
            custom_tags=[CustomTag(tag=tag, value=value) for tag, value in _TAGS.items()],
        ),
        additional_request_headers_to_log=(
            *_REQUEST_HEADERS,
            *user_headers,
            *((COOKIE_HEADER,) if cookies else ()),
        ),
        # A call that fails at once has no trailers; their content is in the headers.
        additional_response_headers_to_log=_TRAILERS,
        additional_response_trailers_to_log=_TRAILERS,
    )
    log = AccessLog(name="envoy.access_loggers.http_grpc")
    log.typed_config.Pack(config)
    return log


def _grpc_service(cluster: str) -> GrpcService:
    return GrpcService(envoy_grpc=GrpcService.EnvoyGrpc(cluster_name=cluster))


def _duration(delta: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(delta)
    return duration
