"""The record of one request, parsed from an access log entry of an Envoy.

Everything here is a function of the message. The content is not trusted: a client chooses paths and
headers, a server chooses trailers, and anyone on the machine can connect to the access log port. So
no entry makes the parser fail, and missing values are None or empty.

The status of a call comes from the first of these that applies:

1. Its trailers.
2. Its headers, if the call ended with them.
3. DEADLINE_EXCEEDED, if a timeout of Envoy ended it, or if its client left at its deadline.
4. CANCELLED, if its client left earlier. Envoy ends a copy whose request has ended before all of it
   was sent, and logs neither a status nor a flag.
5. The HTTP status, by gRPC's "HTTP to gRPC Status Code Mapping". So a stream that was cut in the
   middle is UNKNOWN.

A caller's deadline can end a call in the proxy: Envoy takes ``grpc-timeout`` for the timeout of the
route. The log then shows a timeout of the proxy, and UNAVAILABLE if the call had no answer yet. The
record says DEADLINE_EXCEEDED, and not `proxy_timeout`, if the call lasted as long as its caller
allowed and no shorter timeout of the route is known.
"""

import base64
import binascii
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Self

import grpc
from envoy.config.core.v3.address_pb2 import Address
from envoy.config.core.v3.base_pb2 import Node
from envoy.data.accesslog.v3.accesslog_pb2 import (
    AccessLogCommon,
    AccessLogType,
    HTTPAccessLogEntry,
    HTTPResponseProperties,
)
from envoy.extensions.filters.http.grpc_stats.v3.config_pb2 import FilterObject
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport

from tidegate.chassis.calls import deadline_has_passed
from tidegate.mesh.resources import MIRRORED_HEADER
from tidegate.mesh.telemetry.envoy_config import (
    BY_HEADERS_TAG,
    CLUSTER_TAG,
    COOKIE_HEADER,
    FLAGS_TAG,
    GRPC_STATS,
    LOAD_TRAILER,
    SPAN_TAG,
    TIMEOUT_TAG,
    TRACE_TAG,
)

__all__ = [
    "MIRROR_SUFFIX",
    "ClusterName",
    "RequestRecord",
    "address_text",
    "grpc_timeout_s",
    "parse_entry",
    "proxy_name",
]

_CLUSTER_NAME: Final = re.compile(
    # Istio's proxies may log the name with the semicolon that ends it in names of metrics.
    r"outbound\|(?P<port>[0-9]{1,5})\|(?P<subset>[^|]*)\|(?P<host>[^|;]+);?"
)

_CODES: Final = {str(code.value[0]): code for code in grpc.StatusCode}

# https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
_CODE_OF_HTTP: Final = {
    400: grpc.StatusCode.INTERNAL,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    429: grpc.StatusCode.UNAVAILABLE,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}

# Envoy's short names, in the order of the message's fields (its "%RESPONSE_FLAGS%").
_FLAG_NAMES: Final = {
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_request_timeout": "UT",
    "local_reset": "LR",
    "upstream_remote_reset": "UR",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "delay_injected": "DI",
    "fault_injected": "FI",
    "rate_limited": "RL",
    "unauthorized_details": "UAEX",
    "rate_limit_service_error": "RLSE",
    "downstream_connection_termination": "DC",
    "upstream_retry_limit_exceeded": "URX",
    "stream_idle_timeout": "SI",
    "invalid_envoy_request_headers": "IH",
    "downstream_protocol_error": "DPE",
    "upstream_max_stream_duration_reached": "UMSDR",
    "response_from_cache_filter": "RFCF",
    "no_filter_config_found": "NFCF",
    "duration_timeout": "DT",
    "upstream_protocol_error": "UPE",
    "no_cluster_found": "NC",
    "overload_manager": "OM",
    "dns_resolution_failure": "DF",
    "downstream_remote_reset": "DR",
}
_NOT_SERVED_FLAGS: Final = frozenset({"UH", "NC"})
_CLIENT_LEFT_FLAGS: Final = frozenset({"DC", "DR"})
# Envoy's timeouts for a whole call: of a route, of the proxy, and of the cluster.
_TIMEOUT_FLAGS: Final = frozenset({"UT", "DT", "UMSDR"})
_TIMEOUT_DETAILS: Final = frozenset({"max_duration_timeout", "response_timeout"})
# gRPC over HTTP2, "Timeout".
_GRPC_TIMEOUT: Final = re.compile(r"(?P<value>[0-9]{1,8})(?P<unit>[HMSmun])", re.ASCII)
_MILLISECONDS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)
_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_NO_TRAILERS: Final = frozenset({"grpc-status", "grpc-message", LOAD_TRAILER})
_PROTOCOL_HEADERS: Final = frozenset({"content-type", "grpc-timeout", "traceparent"})
_OWN_HEADERS: Final = frozenset({COOKIE_HEADER, MIRRORED_HEADER})
MIRROR_SUFFIX: Final = re.compile(r"-shadow(:[0-9]+)?\Z")
"""What an Envoy appends to the host of a copy unless it is told not to."""

# What Envoy writes for a missing value.
_NO_VALUE: Final = "-"
_TRACE_DIGITS: Final = 32
_SPAN_DIGITS: Final = 16
_NANO: Final = 1e-9


@dataclass(frozen=True, slots=True)
class ClusterName:
    """A cluster name of istiod, such as ``outbound|50051|v2|vision.models.svc.cluster.local``.

    Attributes:
        host: Full name of the service, or the whole cluster name if it has another form.
        port: Port of the service, or None if the name has another form.
        subset: The subset, empty for the whole service.
    """

    host: str
    port: int | None = None
    subset: str = ""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Parses a cluster name. A name of another form becomes the host."""
        match = _CLUSTER_NAME.fullmatch(name)
        if match is None:
            return cls(name)
        return cls(match["host"], int(match["port"]), match["subset"])


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One finished request.

    Attributes:
        proxy: Node id of the Envoy that logged the request.
        proxy_role: Role of that Envoy, such as ``ingress``. Empty if it does not report one.
        start_time_s: When the request arrived, in seconds since the epoch.
        authority: The authority, as the client sent it.
        path: The path, as the client sent it, before any rewrite.
        service: Full name of the gRPC service, empty if the path names none.
        method: Name of the gRPC method, empty if the path names none.
        is_grpc: Whether the request is a gRPC call.
        route: Name of the matched route, empty without one.
        cluster: Name of the cluster that the route chose, empty without one.
        host: The service behind the cluster, empty without a cluster.
        port: Port of the service.
        subset: Subset of the service, empty for the whole service.
        upstream_address: The chosen endpoint as ``address:port``, empty without one.
        listener_address: Where the client's connection arrived, as ``address:port``.
        attempts: How often Envoy tried to send the request upstream.
        http_status: HTTP status of the response, 0 without response headers.
        grpc_status: Status of the call, None if the request is no gRPC call.
        grpc_message: Error message of the call.
        response_flags: Envoy's response flags (``UH``, ``UF``, ``DC``).
        response_details: Envoy's response code details, such as ``via_upstream``.
        time_to_first_byte_s: Time to the first byte from the endpoint, None if there was none. If
            the server sends its headers with the first message of a stream, this is the time to
            that message.
        time_to_last_byte_s: Time to the last byte from the endpoint, None if there was none.
        duration_s: Time until the last byte was sent to the client.
        request_bytes: Size of the request body.
        response_bytes: Size of the response body.
        request_messages: Messages of the client, None if they were not counted.
        response_messages: Messages of the server, None if they were not counted.
        trailers: The logged trailers that the server sent, without the status.
        headers: The logged request headers that the client sent.
        cookies: The cookies that name a user, as far as the client sent them.
        mirrored: Whether this is a copy of a request, whose answer no client gets.
        by_headers: Whether the route has conditions on headers, so that the caller chose it.
        proxy_timeout: Whether a timeout of the proxy ended the call, and not the caller's deadline.
        server_side: Whether the proxy beside the server logged the request, because its caller has
            no proxy that logs.
        utilization: The share of its capacity that the server used, as it reports; None if it does
            not.
        trace_id: 32 hexadecimal digits, empty for a request without a trace.
        span_id: 16 hexadecimal digits of the proxy's span, or of its caller's; empty if neither is
            known.
        request_id: Envoy's ``x-request-id``.
    """

    proxy: str
    proxy_role: str
    start_time_s: float
    authority: str
    path: str
    service: str
    method: str
    is_grpc: bool
    route: str
    cluster: str
    host: str
    port: int | None
    subset: str
    upstream_address: str
    listener_address: str
    attempts: int
    http_status: int
    grpc_status: grpc.StatusCode | None
    grpc_message: str
    response_flags: tuple[str, ...]
    response_details: str
    time_to_first_byte_s: float | None
    time_to_last_byte_s: float | None
    duration_s: float
    request_bytes: int
    response_bytes: int
    request_messages: int | None
    response_messages: int | None
    trailers: Mapping[str, str]
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    mirrored: bool
    by_headers: bool
    proxy_timeout: bool
    utilization: float | None
    trace_id: str
    request_id: str
    span_id: str = ""
    server_side: bool = False

    @property
    def not_served(self) -> bool:
        """Whether the proxy knew no healthy server or no cluster for the request."""
        return not _NOT_SERVED_FLAGS.isdisjoint(self.response_flags)

    @property
    def user_headers(self) -> Mapping[str, str]:
        """The logged request headers that name a user."""
        headers = self.headers.items()
        return {key: value for key, value in headers if key not in _PROTOCOL_HEADERS}

    @property
    def model(self) -> str | None:
        """Name of the model that answered, as the server reports it."""
        return self.trailers.get("tidegate-model")

    @property
    def model_version(self) -> str | None:
        """Version of the model that answered, as the server reports it."""
        return self.trailers.get("tidegate-model-version")


def proxy_name(node: Node) -> tuple[str, str]:
    """Returns a proxy's id and role, read from its node."""
    role = node.metadata.fields.get("TIDEGATE_PROXY")
    return node.id, "" if role is None else role.string_value


def parse_entry(
    entry: HTTPAccessLogEntry,
    proxy: str = "",
    proxy_role: str = "",
    user_cookies: Collection[str] = (),
) -> RequestRecord | None:
    """Parses an access log entry.

    Args:
        entry: The entry, with any content.
        proxy: Node id of the proxy.
        proxy_role: Role of the proxy.
        user_cookies: Names of the cookies that name a user.

    Returns:
        The request record, or None if the entry does not describe the end of a request, or of a
        copy.
    """
    common, request, response = entry.common_properties, entry.request, entry.response
    mirrored = common.access_log_type == AccessLogType.UpstreamEnd
    if not (_is_copy(entry) if mirrored else _is_end(common)):
        return None
    cluster = _tag(common, CLUSTER_TAG) or common.upstream_cluster
    name = ClusterName.parse(cluster)
    path = request.original_path or request.path
    service, method = _service_and_method(path)
    headers = dict(request.request_headers)
    timeout_s = grpc_timeout_s(headers)
    is_grpc = _is_grpc(headers.get("content-type"), response)
    flags = _flags(common)
    duration_s = _duration_s(common)
    timed_out = _ended_by_timeout(response, flags)
    route_timeout_s = _route_timeout_s(_tag(common, TIMEOUT_TAG))
    if timed_out and _is_callers(timeout_s, route_timeout_s, duration_s):
        code, message, timed_out = grpc.StatusCode.DEADLINE_EXCEEDED, "", False
    else:
        code, message = _status(response, flags, timeout_s, duration_s, mirrored=mirrored)
        timed_out = timed_out or _outlasted_route(code, flags, route_timeout_s, duration_s)
    counts = _message_counts(common)
    request_bytes, response_bytes = request.request_body_bytes, response.response_body_bytes
    if mirrored:
        # Envoy (1.40) logs the bytes of a copy the other way round.
        request_bytes, response_bytes = response_bytes, request_bytes
    metadata = dict(response.response_headers) | dict(response.response_trailers)
    trace_id, span_id = _trace_and_span(common, headers.get("traceparent", ""))
    return RequestRecord(
        proxy=proxy,
        proxy_role=proxy_role,
        start_time_s=common.start_time.seconds + common.start_time.nanos * _NANO,
        authority=request.authority,
        path=path,
        service=service,
        method=method,
        is_grpc=is_grpc,
        route=common.route_name,
        cluster=cluster,
        host=name.host,
        port=name.port,
        subset=name.subset,
        upstream_address=address_text(common.upstream_remote_address),
        listener_address=address_text(common.downstream_local_address),
        attempts=common.upstream_request_attempt_count,
        http_status=response.response_code.value,
        grpc_status=code if is_grpc else None,
        grpc_message=message,
        response_flags=flags,
        response_details=response.response_code_details,
        time_to_first_byte_s=(
            _seconds(common.time_to_first_upstream_rx_byte)
            if common.HasField("time_to_first_upstream_rx_byte")
            else None
        ),
        time_to_last_byte_s=(
            _seconds(common.time_to_last_upstream_rx_byte)
            if common.HasField("time_to_last_upstream_rx_byte")
            else None
        ),
        duration_s=duration_s,
        request_bytes=request_bytes,
        response_bytes=response_bytes,
        request_messages=None if counts is None else counts.request_message_count,
        response_messages=None if counts is None else counts.response_message_count,
        trailers={key: value for key, value in metadata.items() if key not in _NO_TRAILERS},
        headers={key: value for key, value in headers.items() if key not in _OWN_HEADERS},
        cookies=_cookies(headers.get(COOKIE_HEADER, ""), user_cookies),
        mirrored=mirrored,
        by_headers=_tag(common, BY_HEADERS_TAG) != "",
        proxy_timeout=timed_out,
        utilization=_utilization(metadata.get(LOAD_TRAILER)),
        trace_id=trace_id,
        span_id=span_id,
        request_id=request.request_id,
    )


def _is_end(common: AccessLogCommon) -> bool:
    if common.intermediate_log_entry:
        return False
    return common.access_log_type in (AccessLogType.NotSet, AccessLogType.DownstreamEnd)


def _is_copy(entry: HTTPAccessLogEntry) -> bool:
    # The upstream log has attempts of requests too, if its filter is missing.
    if entry.common_properties.intermediate_log_entry:
        return False
    request = entry.request
    return (
        MIRRORED_HEADER in request.request_headers
        or MIRROR_SUFFIX.search(request.authority) is not None
    )


def _tag(common: AccessLogCommon, tag: str) -> str:
    value = common.custom_tags.get(tag, "")
    return "" if value == _NO_VALUE else value


def _service_and_method(path: str) -> tuple[str, str]:
    parts = path.partition("?")[0].split("/")
    return (parts[1], parts[2]) if len(parts) == 3 and all(parts[1:]) else ("", "")


def _is_grpc(content_type: str | None, response: HTTPResponseProperties) -> bool:
    if content_type is not None:
        return content_type.startswith("application/grpc")
    # Another access log configuration may not log the header. The response shows it as well.
    return "grpc-status" in response.response_trailers or "grpc-status" in response.response_headers


def _flags(common: AccessLogCommon) -> tuple[str, ...]:
    tagged = _tag(common, FLAGS_TAG)
    if tagged:
        return tuple(dict.fromkeys(tagged.split(",")))
    metadata = (field.name for field, _ in common.response_flags.ListFields())
    return tuple(_FLAG_NAMES[name] for name in metadata if name in _FLAG_NAMES)


def _status(
    response: HTTPResponseProperties,
    flags: tuple[str, ...],
    deadline_s: float | None,
    duration_s: float,
    *,
    mirrored: bool,
) -> tuple[grpc.StatusCode, str]:
    for metadata in (response.response_trailers, response.response_headers):
        if "grpc-status" in metadata:
            code = _CODES.get(metadata["grpc-status"].strip(), grpc.StatusCode.UNKNOWN)
            return code, metadata.get("grpc-message", "")
    if _ended_by_timeout(response, flags):
        return grpc.StatusCode.DEADLINE_EXCEEDED, ""
    if not _CLIENT_LEFT_FLAGS.isdisjoint(flags):
        late = deadline_s is not None and deadline_has_passed(deadline_s, duration_s)
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED, ""
    if mirrored and not flags:
        return grpc.StatusCode.CANCELLED, ""
    return _CODE_OF_HTTP.get(response.response_code.value, grpc.StatusCode.UNKNOWN), ""


def _ended_by_timeout(response: HTTPResponseProperties, flags: tuple[str, ...]) -> bool:
    """Whether a timeout of the proxy ended the call, whoever chose it."""
    return response.response_code_details in _TIMEOUT_DETAILS or not _TIMEOUT_FLAGS.isdisjoint(
        flags
    )


def _is_callers(deadline_s: float | None, route_timeout_s: float | None, duration_s: float) -> bool:
    """Whether a timeout that ended the call is the caller's deadline."""
    if deadline_s is None or not deadline_has_passed(deadline_s, duration_s):
        return False
    return route_timeout_s is None or deadline_s < route_timeout_s


def _outlasted_route(
    code: grpc.StatusCode, flags: tuple[str, ...], route_timeout_s: float | None, duration_s: float
) -> bool:
    """Whether the server ended the call at the route's timeout, which Envoy sends along."""
    if code is not grpc.StatusCode.DEADLINE_EXCEEDED or not _CLIENT_LEFT_FLAGS.isdisjoint(flags):
        return False
    return route_timeout_s is not None and deadline_has_passed(route_timeout_s, duration_s)


def _route_timeout_s(milliseconds: str) -> float | None:
    return None if _MILLISECONDS.fullmatch(milliseconds) is None else float(milliseconds) / 1000


def _cookies(header: str, names: Collection[str]) -> dict[str, str]:
    if not header or not names:
        return {}
    pairs = (each.partition("=") for each in header.split(";"))
    found = ((name.strip(), value.strip().strip('"')) for name, _, value in pairs)
    return {name: value for name, value in found if name in names}


def _utilization(trailer: str | None) -> float | None:
    """Reads an ORCA load report, as gRPC's balancers read it (gRFC A58)."""
    if trailer is None:
        return None
    try:
        data = base64.b64decode(trailer + "=" * (-len(trailer) % 4), validate=True)
        report = OrcaLoadReport.FromString(data)
    except (binascii.Error, ValueError, DecodeError):
        return None
    used = report.application_utilization or report.cpu_utilization
    return used if math.isfinite(used) and used >= 0 else None


def grpc_timeout_s(headers: Mapping[str, str]) -> float | None:
    """Returns the deadline that a caller sent along, in seconds; None without a valid one."""
    match = _GRPC_TIMEOUT.fullmatch(headers.get("grpc-timeout", ""))
    return None if match is None else int(match["value"]) * _UNITS_S[match["unit"]]


def _duration_s(common: AccessLogCommon) -> float:
    if common.HasField("duration"):
        return _seconds(common.duration)
    return _seconds(common.time_to_last_downstream_tx_byte)


def _message_counts(common: AccessLogCommon) -> FilterObject | None:
    packed = common.filter_state_objects.get(GRPC_STATS)
    if packed is None:
        return None
    counts = FilterObject()
    try:
        return counts if packed.Unpack(counts) else None
    except DecodeError:
        return None


def _seconds(duration: Duration) -> float:
    return max(0.0, duration.seconds + duration.nanos * _NANO)


def address_text(address: Address) -> str:
    """Returns an address as ``address:port``, empty for any other kind of address."""
    match address.WhichOneof("address"):
        case "socket_address":
            socket = address.socket_address
            host = f"[{socket.address}]" if ":" in socket.address else socket.address
            return f"{host}:{socket.port_value}"
        case "pipe":
            return f"unix:{address.pipe.path}"
        case _:
            return ""


def _trace_and_span(common: AccessLogCommon, traceparent: str) -> tuple[str, str]:
    """Returns the ids of the request's trace and span.

    Args:
        common: The entry, whose tags have the proxy's own if the proxy says them.
        traceparent: The header, which has those of the caller.
    """
    # https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags.
    parts = traceparent.split("-")
    is_valid = len(parts) >= 4 and len(parts[1]) == _TRACE_DIGITS and len(parts[2]) == _SPAN_DIGITS
    trace_id, span_id = (parts[1], parts[2]) if is_valid else ("", "")
    tagged_trace, tagged_span = _tag(common, TRACE_TAG), _tag(common, SPAN_TAG)
    if tagged_trace and (tagged_span or tagged_trace != trace_id):
        return tagged_trace, tagged_span
    return trace_id, span_id
