"""What an Envoy is configured with so that it tells the controller of every request.

The access log goes over gRPC (ALS) to the static cluster `ACCESS_LOG_CLUSTER`, spans go over
OTLP/gRPC to `TRACES_CLUSTER`; both clusters are in Envoy's bootstrap. Messages are counted where
the filter `GRPC_STATS` stands before the router, with ``emit_filter_state``.

What an access log entry lacks comes as custom tags of the log: the cluster where it had no
endpoint, flags that the entry's message has no field for, the trace of a request that came
without one.
"""

from datetime import timedelta
from typing import Final

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.core.v3.config_source_pb2 import ApiVersion
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.config.trace.v3.http_tracer_pb2 import Tracing as Tracer
from envoy.config.trace.v3.opentelemetry_pb2 import OpenTelemetryConfig
from envoy.extensions.access_loggers.grpc.v3.als_pb2 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a generated name
    HttpConnectionManager,
)
from envoy.type.tracing.v3.custom_tag_pb2 import CustomTag
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

__all__ = [
    "ACCESS_LOG_CLUSTER",
    "CLUSTER_TAG",
    "FLAGS_TAG",
    "GRPC_STATS",
    "TRACES_CLUSTER",
    "TRACE_TAG",
    "access_log_config",
    "tracing_config",
]

ACCESS_LOG_CLUSTER: Final = "tidegate-access-log"
"""Static cluster of the bootstrap that takes access logs."""

TRACES_CLUSTER: Final = "tidegate-traces"
"""Static cluster of the bootstrap that takes spans."""

GRPC_STATS: Final = "envoy.filters.http.grpc_stats"
"""Name of the filter that counts messages, and of what it leaves for the access log."""

CLUSTER_TAG: Final = "tidegate.upstream_cluster"
FLAGS_TAG: Final = "tidegate.response_flags"
TRACE_TAG: Final = "tidegate.trace_id"

# Soon enough for a decision, seldom enough to share a message between many requests.
_FLUSH_INTERVAL: Final = timedelta(milliseconds=100)
# A full buffer is flushed at once, and is what Envoy's worker holds while the controller reads
# nothing: some thousand requests. It stays under what gRPC takes in one message (4 MiB).
_BUFFER_BYTES: Final = 1 << 20

_REQUEST_HEADERS: Final = (
    *("content-type", "grpc-timeout", "traceparent"),
    *("x-user-id", "x-user-tier"),
)
_GRPC_STATUS: Final = ("grpc-status", "grpc-message")
_TRAILERS: Final = (
    *_GRPC_STATUS,
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
    CLUSTER_TAG: "%UPSTREAM_CLUSTER_RAW%",
    FLAGS_TAG: "%RESPONSE_FLAGS%",
    TRACE_TAG: "%TRACE_ID%",
}


def access_log_config() -> AccessLog:
    """The log that sends one entry for each request when it has ended."""
    config = HttpGrpcAccessLogConfig(
        common_config=CommonGrpcAccessLogConfig(
            log_name="tidegate",
            grpc_service=_grpc_service(ACCESS_LOG_CLUSTER),
            transport_api_version=ApiVersion.V3,
            buffer_flush_interval=_duration(_FLUSH_INTERVAL),
            buffer_size_bytes=UInt32Value(value=_BUFFER_BYTES),
            filter_state_objects_to_log=[GRPC_STATS],
            custom_tags=[CustomTag(tag=tag, value=value) for tag, value in _TAGS.items()],
        ),
        additional_request_headers_to_log=_REQUEST_HEADERS,
        # A call that fails at once ends with its headers: there is what would be in trailers.
        additional_response_headers_to_log=_TRAILERS,
        additional_response_trailers_to_log=_TRAILERS,
    )
    log = AccessLog(name="envoy.access_loggers.http_grpc")
    log.typed_config.Pack(config)
    return log


def tracing_config(
    service_name: str = "ingress", sampled_percent: float = 100.0
) -> HttpConnectionManager.Tracing:
    """Spans of Envoy in the client's trace: one for the request, one for each attempt upstream.

    A request that comes with a ``traceparent`` keeps its trace and its sampling decision.

    Args:
        service_name: What the spans' resource is called.
        sampled_percent: How many of the requests without a ``traceparent`` are traced, 0 to 100.
    """
    tracer = Tracer.Http(name="envoy.tracers.opentelemetry")
    tracer.typed_config.Pack(
        OpenTelemetryConfig(grpc_service=_grpc_service(TRACES_CLUSTER), service_name=service_name)
    )
    return HttpConnectionManager.Tracing(
        provider=tracer,
        random_sampling=Percent(value=sampled_percent),
        operation="%REQ(:PATH)%",
        spawn_upstream_span=BoolValue(value=True),
    )


def _grpc_service(cluster: str) -> GrpcService:
    return GrpcService(envoy_grpc=GrpcService.EnvoyGrpc(cluster_name=cluster))


def _duration(delta: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(delta)
    return duration
