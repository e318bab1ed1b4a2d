"""One request as an Envoy saw it, from its access log entry.

Everything here is a function of the message. What comes may be odd: a client chooses paths and
headers, a server its trailers, and the port of the access log may be talked to by anyone on the
machine; so nothing in an entry makes the parser fail, and what is missing is None or empty.

The status of a call is, in this order: what its trailers say; its headers, where it ended with
them; DEADLINE_EXCEEDED where a clock ended it, Envoy's or that of a client which went away at its
deadline; CANCELLED where the client went away before; and else what gRPC makes of the HTTP status
(gRPC's "HTTP to gRPC Status Code Mapping"), so that a stream cut in the middle is UNKNOWN.
"""

import re
from collections.abc import Mapping
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

from tidegate.chassis.calls import deadline_has_passed
from tidegate.mesh.telemetry.envoy_config import CLUSTER_TAG, FLAGS_TAG, GRPC_STATS, TRACE_TAG

__all__ = ["ClusterName", "RequestRecord", "address_text", "parse_entry", "proxy_name"]

_CLUSTER_NAME: Final = re.compile(
    r"outbound\|(?P<port>[0-9]{1,5})\|(?P<subset>[^|]*)\|(?P<host>[^|]+)"
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
_CLIENT_LEFT: Final = frozenset({"DC", "DR"})
# Envoy's clocks for a whole call: those of a route, of the proxy, and of the cluster.
_OVER_TIME: Final = frozenset({"UT", "DT", "UMSDR"})
_OVER_TIME_DETAILS: Final = frozenset({"max_duration_timeout", "response_timeout"})
# gRPC over HTTP2, "Timeout".
_GRPC_TIMEOUT: Final = re.compile(r"(?P<value>[0-9]{1,8})(?P<unit>[HMSmun])", re.ASCII)
_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_STATUS_KEYS: Final = frozenset({"grpc-status", "grpc-message"})
# What Envoy writes where it knows nothing.
_NOTHING: Final = "-"
_NANO: Final = 1e-9


@dataclass(frozen=True, slots=True)
class ClusterName:
    """What istiod's names of clusters say: ``outbound|50051|v2|vision.models.svc.cluster.local``.

    Attributes:
        host: full name of the service; the whole name where it is not one of istiod's.
        port: port of the service, None where it is not one of istiod's names.
        subset: the subset, empty for the whole service.
    """

    host: str
    port: int | None = None
    subset: str = ""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Reads a name; one of another form is taken for the host."""
        match = _CLUSTER_NAME.fullmatch(name)
        if match is None:
            return cls(name)
        return cls(match["host"], int(match["port"]), match["subset"])


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request that has ended.

    Attributes:
        proxy: which Envoy tells it, its node's id.
        proxy_role: what that Envoy is for, such as ``ingress``; empty when it does not say.
        start_time_s: when the request came, seconds since the epoch.
        authority: whom the client called; its own words.
        path: what the client called, before any rewrite; its own words.
        service: full name of the gRPC service, empty where the path names none.
        method: name of the gRPC method, empty where the path names none.
        is_grpc: whether the request was a gRPC call.
        route: name of the route that was taken, empty without one.
        cluster: name of the cluster that the route chose, empty without one.
        host: the service behind the cluster, empty without a cluster.
        port: its port.
        subset: its subset, empty for the whole service.
        upstream_address: the endpoint that was chosen, ``address:port``, empty without one.
        listener_address: where the client's connection arrived, ``address:port``.
        attempts: how often the request was sent upstream or tried to be.
        http_status: status of the response's headers; 0 when there were none.
        grpc_status: how the call ended; None for what is no gRPC call.
        grpc_message: what the call's end says for people.
        response_flags: Envoy's short names for what went wrong (``UH``, ``UF``, ``DC``).
        response_details: Envoy's words for who answered and why, such as ``via_upstream``.
        time_to_first_byte_s: until the first byte of the endpoint's answer; None when none came.
            Of a stream of a server that sends its headers with its first message, the time to it.
        duration_s: until the last byte had gone to the client.
        request_bytes: size of the request's body.
        response_bytes: size of the response's body.
        request_messages: messages of the client, None where they were not counted.
        response_messages: messages of the server, None where they were not counted.
        trailers: those of the logged trailers that the server sent, without the status.
        headers: those of the logged request headers that the client sent.
        trace_id: 32 hexadecimal digits, empty for a request without a trace.
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
    duration_s: float
    request_bytes: int
    response_bytes: int
    request_messages: int | None
    response_messages: int | None
    trailers: Mapping[str, str]
    headers: Mapping[str, str]
    trace_id: str
    request_id: str

    @property
    def model(self) -> str | None:
        """Name of the model that answered, as the server says."""
        return self.trailers.get("tidegate-model")

    @property
    def model_version(self) -> str | None:
        """Version of the model that answered, as the server says."""
        return self.trailers.get("tidegate-model-version")


def proxy_name(node: Node) -> tuple[str, str]:
    """Tells a proxy's id and what it is for, from the node that it introduces itself with."""
    role = node.metadata.fields.get("TIDEGATE_PROXY")
    return node.id, "" if role is None else role.string_value


def parse_entry(
    entry: HTTPAccessLogEntry, proxy: str = "", proxy_role: str = ""
) -> RequestRecord | None:
    """Reads an entry of the access log.

    Args:
        entry: what the proxy sent, whatever it is.
        proxy: id of the proxy.
        proxy_role: what the proxy is for.

    Returns:
        The request; None for an entry that does not tell of a request's end.
    """
    common, request, response = entry.common_properties, entry.request, entry.response
    if not _is_end(common):
        return None
    cluster = _tag(common, CLUSTER_TAG) or common.upstream_cluster
    name = ClusterName.parse(cluster)
    path = request.original_path or request.path
    service, method = _service_and_method(path)
    headers = dict(request.request_headers)
    is_grpc = _is_grpc(headers.get("content-type"), response)
    flags = _flags(common)
    duration_s = _duration_s(common)
    code, message = _status(response, flags, _grpc_timeout_s(headers), duration_s)
    counts = _message_counts(common)
    told = dict(response.response_headers) | dict(response.response_trailers)
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
        duration_s=duration_s,
        request_bytes=request.request_body_bytes,
        response_bytes=response.response_body_bytes,
        request_messages=None if counts is None else counts.request_message_count,
        response_messages=None if counts is None else counts.response_message_count,
        trailers={key: value for key, value in told.items() if key not in _STATUS_KEYS},
        headers=headers,
        trace_id=_tag(common, TRACE_TAG) or _trace_id(headers.get("traceparent", "")),
        request_id=request.request_id,
    )


def _is_end(common: AccessLogCommon) -> bool:
    if common.intermediate_log_entry:
        return False
    return common.access_log_type in (AccessLogType.NotSet, AccessLogType.DownstreamEnd)


def _tag(common: AccessLogCommon, tag: str) -> str:
    value = common.custom_tags.get(tag, "")
    return "" if value == _NOTHING else value


def _service_and_method(path: str) -> tuple[str, str]:
    parts = path.partition("?")[0].split("/")
    return (parts[1], parts[2]) if len(parts) == 3 and all(parts[1:]) else ("", "")


def _is_grpc(content_type: str | None, response: HTTPResponseProperties) -> bool:
    if content_type is not None:
        return content_type.startswith("application/grpc")
    # Another access log's configuration may not name the header; the answer tells as well.
    return "grpc-status" in response.response_trailers or "grpc-status" in response.response_headers


def _flags(common: AccessLogCommon) -> tuple[str, ...]:
    tagged = _tag(common, FLAGS_TAG)
    if tagged:
        return tuple(dict.fromkeys(tagged.split(",")))
    told = (field.name for field, _ in common.response_flags.ListFields())
    return tuple(_FLAG_NAMES[name] for name in told if name in _FLAG_NAMES)


def _status(
    response: HTTPResponseProperties,
    flags: tuple[str, ...],
    given_s: float | None,
    duration_s: float,
) -> tuple[grpc.StatusCode, str]:
    for told in (response.response_trailers, response.response_headers):
        if "grpc-status" in told:
            code = _CODES.get(told["grpc-status"].strip(), grpc.StatusCode.UNKNOWN)
            return code, told.get("grpc-message", "")
    details = response.response_code_details
    if details in _OVER_TIME_DETAILS or not _OVER_TIME.isdisjoint(flags):
        return grpc.StatusCode.DEADLINE_EXCEEDED, ""
    if not _CLIENT_LEFT.isdisjoint(flags):
        late = given_s is not None and deadline_has_passed(given_s, duration_s)
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED, ""
    return _CODE_OF_HTTP.get(response.response_code.value, grpc.StatusCode.UNKNOWN), ""


def _grpc_timeout_s(headers: Mapping[str, str]) -> float | None:
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
    """Writes an address as ``address:port``; empty for what is none."""
    match address.WhichOneof("address"):
        case "socket_address":
            socket = address.socket_address
            host = f"[{socket.address}]" if ":" in socket.address else socket.address
            return f"{host}:{socket.port_value}"
        case "pipe":
            return f"unix:{address.pipe.path}"
        case _:
            return ""


def _trace_id(traceparent: str) -> str:
    # https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags.
    parts = traceparent.split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""
