"""HTTP filters of listeners, and the settings of two of them in routes.

Faults and CORS are off in the listener, and on in the routes that ask for them.
"""

from typing import Final, TypeAlias

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as common_fault_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2 as grpc_stats_pb2
from envoy.extensions.filters.http.grpc_web.v3 import grpc_web_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a generated name
    HttpFilter,
)
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue
from google.rpc import code_pb2

from tidegate.istio.virtual_service import CorsPolicy, FaultInjection, UnmatchedPreflights
from tidegate.mesh.compiler.protobuf import always, duration, fraction, packed, string_matcher

__all__ = ["allow_origins", "envoy_filters", "grpc_filters", "inject_fault"]

_CORS: Final = "envoy.filters.http.cors"
_FAULT: Final = "envoy.filters.http.fault"
_GRPC_STATS: Final = "envoy.filters.http.grpc_stats"
_GRPC_WEB: Final = "envoy.filters.http.grpc_web"
_ROUTER: Final = "envoy.filters.http.router"

_Route: TypeAlias = route_components_pb2.Route


def envoy_filters(*, grpc_web: bool, mirror_log: AccessLog | None = None) -> tuple[HttpFilter, ...]:
    """The filters of a gateway, the router last.

    `grpc_stats` counts the messages of each stream for the access log. It keeps no statistics by
    method: clients could drive up their number with invented methods.

    Args:
        grpc_web: Whether Envoy turns gRPC-Web calls of browsers into gRPC calls.
        mirror_log: The access log of mirrored copies, if there is one. Only the router's upstream
            log has them.
    """
    router = router_pb2.Router()
    if mirror_log is not None:
        router.upstream_log.append(mirror_log)
    return (
        *([_filter(_GRPC_WEB, grpc_web_pb2.GrpcWeb())] if grpc_web else []),
        _filter(
            _GRPC_STATS,
            grpc_stats_pb2.FilterConfig(
                emit_filter_state=True, stats_for_all_methods=BoolValue(value=False)
            ),
        ),
        _filter(_FAULT, fault_pb2.HTTPFault()),
        _filter(_CORS, cors_pb2.Cors()),
        _filter(_ROUTER, router),
    )


def grpc_filters() -> tuple[HttpFilter, ...]:
    """The filters of a gRPC client, which supports these two (gRFC A33, A39)."""
    return (_filter(_FAULT, fault_pb2.HTTPFault()), _filter(_ROUTER, router_pb2.Router()))


def inject_fault(route: _Route, fault: FaultInjection) -> None:
    """Makes a route delay or fail requests on purpose."""
    result = fault_pb2.HTTPFault()
    if fault.delay and fault.delay.percentage:
        result.delay.CopyFrom(
            common_fault_pb2.FaultDelay(
                fixed_delay=duration(fault.delay.fixed_delay),
                percentage=fraction(fault.delay.percentage),
            )
        )
    if fault.abort and fault.abort.percentage:
        result.abort.percentage.CopyFrom(fraction(fault.abort.percentage))
        if fault.abort.grpc_status is not None:
            result.abort.grpc_status = code_pb2.Code.Value(fault.abort.grpc_status)
        else:
            result.abort.http_status = fault.abort.http_status
    route.typed_per_filter_config[_FAULT].CopyFrom(packed(result))


def allow_origins(route: _Route, cors: CorsPolicy) -> None:
    """Sets the CORS policy of a route."""
    policy = cors_pb2.CorsPolicy(
        allow_origin_string_match=[string_matcher(each) for each in cors.allow_origins],
        allow_methods=",".join(cors.allow_methods),
        allow_headers=",".join(cors.allow_headers),
        expose_headers=",".join(cors.expose_headers),
        filter_enabled=always(),
        forward_not_matching_preflights=BoolValue(
            value=cors.unmatched_preflights is not UnmatchedPreflights.IGNORE
        ),
    )
    if cors.max_age is not None:
        policy.max_age = str(round(cors.max_age.total_seconds()))
    if cors.allow_credentials is not None:
        policy.allow_credentials.value = cors.allow_credentials
    route.typed_per_filter_config[_CORS].CopyFrom(packed(policy))


def _filter(name: str, config: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=packed(config))
