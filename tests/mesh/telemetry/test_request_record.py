"""Parsing access log entries into request records, also entries without sense."""

import base64
import contextlib
import math

import grpc
import pytest
from entry_messages import messages
from envoy.config.core.v3.address_pb2 import Address
from envoy.data.accesslog.v3.accesslog_pb2 import (
    AccessLogType,
    HTTPAccessLogEntry,
    ResponseFlags,
)
from envoy.extensions.filters.http.grpc_stats.v3.config_pb2 import FilterObject
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chassis.orca import LoadReport
from tidegate.mesh.control.api.request_records import record_message
from tidegate.mesh.resources import MIRRORED_HEADER
from tidegate.mesh.telemetry import lenient_parsing
from tidegate.mesh.telemetry.envoy_config import (
    BY_HEADERS_TAG,
    CLUSTER_TAG,
    FLAGS_TAG,
    SPAN_TAG,
    TIMEOUT_TAG,
    TRACE_TAG,
)
from tidegate.mesh.telemetry.request_record import ClusterName, address_text, parse_entry

TRACE = "0af7651916cd43dd8448eb211c80319c"


def call(http=200, headers=None, trailers=None, **common):
    entry = HTTPAccessLogEntry()
    entry.request.path = "/pkg.v1.Service/Method"
    entry.request.request_headers["content-type"] = "application/grpc+proto"
    entry.response.response_code.value = http
    entry.response.response_headers.update(headers or {})
    entry.response.response_trailers.update(trailers or {})
    for name, value in common.items():
        setattr(entry.common_properties, name, value)
    return entry


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("outbound|80|v2|a.b.svc", ClusterName("a.b.svc", 80, "v2")),
        ("outbound|80||a.b.svc", ClusterName("a.b.svc", 80)),
        ("outbound|80|v2|", ClusterName("outbound|80|v2|")),
        ("outbound|080000|v2|a", ClusterName("outbound|080000|v2|a")),
        ("outbound|٨٠|v2|a", ClusterName("outbound|٨٠|v2|a")),
        ("outbound|80|v2|a|b", ClusterName("outbound|80|v2|a|b")),
        ("inbound|80||a", ClusterName("inbound|80||a")),
        ("BlackHoleCluster", ClusterName("BlackHoleCluster")),
        ("", ClusterName("")),
    ],
)
def test_a_cluster_name_of_another_form_is_the_host(name, parsed):
    assert ClusterName.parse(name) == parsed


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (call(trailers={"grpc-status": "0"}), grpc.StatusCode.OK),
        (call(headers={"grpc-status": "5"}), grpc.StatusCode.NOT_FOUND),
        (
            call(headers={"grpc-status": "0"}, trailers={"grpc-status": "13"}),
            grpc.StatusCode.INTERNAL,
        ),
        (call(trailers={"grpc-status": "17"}), grpc.StatusCode.UNKNOWN),
        (call(trailers={"grpc-status": "٣"}), grpc.StatusCode.UNKNOWN),
        (call(trailers={"grpc-status": ""}), grpc.StatusCode.UNKNOWN),
        (call(http=200), grpc.StatusCode.UNKNOWN),
        (call(http=0), grpc.StatusCode.UNKNOWN),
        (call(http=400), grpc.StatusCode.INTERNAL),
        (call(http=401), grpc.StatusCode.UNAUTHENTICATED),
        (call(http=403), grpc.StatusCode.PERMISSION_DENIED),
        (call(http=404), grpc.StatusCode.UNIMPLEMENTED),
        (call(http=429), grpc.StatusCode.UNAVAILABLE),
        (call(http=502), grpc.StatusCode.UNAVAILABLE),
        (call(http=503), grpc.StatusCode.UNAVAILABLE),
        (call(http=504), grpc.StatusCode.UNAVAILABLE),
        (call(http=500), grpc.StatusCode.UNKNOWN),
    ],
)
def test_status_is_what_a_grpc_client_would_see(entry, status):
    assert parse_entry(entry).grpc_status is status


def test_client_that_left_after_the_status_was_sent_changes_nothing():
    entry = call(trailers={"grpc-status": "0"})
    entry.common_properties.response_flags.downstream_remote_reset = True
    assert parse_entry(entry).grpc_status is grpc.StatusCode.OK


def cut(flag=None, details="", timeout=None, seconds=0.0, **more):
    """A stream that started and got no status."""
    entry = call(**more)
    if flag:
        entry.common_properties.custom_tags[FLAGS_TAG] = flag
    entry.response.response_code_details = details
    if timeout:
        entry.request.request_headers["grpc-timeout"] = timeout
    entry.common_properties.duration.FromMilliseconds(int(seconds * 1000))
    return entry


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        # Envoy's timeouts.
        (cut(details="max_duration_timeout"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut(details="response_timeout"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut("DT"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut("UT"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut("UMSDR"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut("SI", "stream_idle_timeout"), grpc.StatusCode.UNKNOWN),
        # A received status takes precedence.
        (cut("UT", headers={"grpc-status": "14"}), grpc.StatusCode.UNAVAILABLE),
        # One client leaves at its deadline, which gRPC rounds up, and one leaves earlier.
        (cut("DR", timeout="1010m", seconds=1.0), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut("DC", timeout="5S", seconds=5.2), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut("DR", timeout="50000u", seconds=0.05), grpc.StatusCode.DEADLINE_EXCEEDED),
        (cut("DR", timeout="1010m", seconds=0.9), grpc.StatusCode.CANCELLED),
        (cut("DR", timeout="1H", seconds=3000), grpc.StatusCode.CANCELLED),
        (cut("DR", seconds=3000), grpc.StatusCode.CANCELLED),
        # A header may hold any text.
        (cut("DR", timeout="٣S", seconds=5), grpc.StatusCode.CANCELLED),
        (cut("DR", timeout="123456789S", seconds=5), grpc.StatusCode.CANCELLED),
        (cut("DR", timeout="-1S", seconds=5), grpc.StatusCode.CANCELLED),
        (cut("DR", timeout="5", seconds=5), grpc.StatusCode.CANCELLED),
    ],
)
def test_a_call_ended_by_a_timeout_is_deadline_exceeded(entry, status):
    assert parse_entry(entry).grpc_status is status


def test_every_response_flag_has_envoys_short_name():
    entry = call()
    for field in ResponseFlags.DESCRIPTOR.fields:
        if field.message_type is None:
            setattr(entry.common_properties.response_flags, field.name, True)
    entry.common_properties.response_flags.unauthorized_details.reason = 1
    flags = parse_entry(entry).response_flags
    assert len(set(flags)) == len(ResponseFlags.DESCRIPTOR.fields)
    assert {"UH", "UF", "NR", "NC", "UC", "UR", "URX", "DC", "DR", "UO", "UAEX"} <= set(flags)


def test_flags_without_a_field_come_from_the_tag():
    entry = call()
    entry.common_properties.response_flags.no_healthy_upstream = True
    entry.common_properties.custom_tags[FLAGS_TAG] = "UH,DO"
    assert parse_entry(entry).response_flags == ("UH", "DO")


def test_empty_tags_are_ignored():
    entry = call(upstream_cluster="outbound|1|s|h")
    entry.common_properties.custom_tags.update({CLUSTER_TAG: "-", FLAGS_TAG: "-", TRACE_TAG: "-"})
    record = parse_entry(entry)
    assert (record.cluster, record.response_flags, record.trace_id) == ("outbound|1|s|h", (), "")


def test_the_span_is_the_proxys_own_or_that_of_its_caller():
    entry = call()
    entry.request.request_headers["traceparent"] = f"00-{TRACE}-b7ad6b7169203331-01"
    assert parse_entry(entry).span_id == "b7ad6b7169203331"
    tags = entry.common_properties.custom_tags
    tags[TRACE_TAG] = TRACE
    assert parse_entry(entry).span_id == "b7ad6b7169203331"
    tags[SPAN_TAG] = "1" * 16
    assert (parse_entry(entry).trace_id, parse_entry(entry).span_id) == (TRACE, "1" * 16)
    # Envoy's own trace is another one than that of a header that it does not trust.
    tags[TRACE_TAG], tags[SPAN_TAG] = "f" * 32, "-"
    assert (parse_entry(entry).trace_id, parse_entry(entry).span_id) == ("f" * 32, "")


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-will-be", TRACE),
        (f"00-{TRACE}", ""),
        ("00-x-b7ad6b7169203331-01", ""),
        ("", ""),
    ],
)
def test_the_trace_comes_from_traceparent_without_a_tag(traceparent, trace):
    entry = call()
    entry.request.request_headers["traceparent"] = traceparent
    assert parse_entry(entry).trace_id == trace


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/a.B/C", ("a.B", "C")),
        ("/a.B/C?d=/e", ("a.B", "C")),
        ("/a.B/", ("", "")),
        ("//C", ("", "")),
        ("/a/b/c", ("", "")),
        ("a.B/C", ("", "")),
        ("*", ("", "")),
        ("", ("", "")),
    ],
)
def test_method_is_read_from_a_path_of_two_parts(path, names):
    entry = call()
    entry.request.path = path
    record = parse_entry(entry)
    assert (record.service, record.method) == names


def test_grpc_without_a_content_type_is_recognised_by_its_status():
    entry = call(trailers={"grpc-status": "0"})
    entry.request.request_headers.clear()
    assert parse_entry(entry).is_grpc
    entry.response.response_trailers.clear()
    assert not parse_entry(entry).is_grpc


def test_only_the_end_of_a_request_is_a_record():
    assert parse_entry(call(access_log_type=AccessLogType.DownstreamEnd)) is not None
    assert parse_entry(call(access_log_type=AccessLogType.DownstreamPeriodic)) is None
    assert parse_entry(call(intermediate_log_entry=True)) is None


def copied(authority="vision", **headers):
    entry = call(access_log_type=AccessLogType.UpstreamEnd)
    entry.request.authority = authority
    entry.request.request_headers.update(headers)
    entry.request.request_body_bytes = 300
    entry.response.response_body_bytes = 150_000
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        copied(**{MIRRORED_HEADER: "1"}),
        copied("vision-shadow"),
        copied("vision.example.com-shadow:8500"),
    ],
)
def test_an_upstream_entry_of_a_copy_is_a_record(entry):
    record = parse_entry(entry)
    assert record.mirrored
    assert MIRRORED_HEADER not in record.headers
    # Envoy logs the bytes of a copy the other way round.
    assert (record.request_bytes, record.response_bytes) == (150_000, 300)


@pytest.mark.parametrize("authority", ["vision", "shadow", "a-shadowy", "-shadow.example.com", ""])
def test_an_upstream_entry_of_a_request_is_no_record(authority):
    assert parse_entry(copied(authority)) is None
    copy = copied(**{MIRRORED_HEADER: "1"})
    copy.common_properties.intermediate_log_entry = True
    assert parse_entry(copy) is None


def test_a_copy_that_envoy_ended_with_its_request_is_cancelled():
    copy = copied(**{MIRRORED_HEADER: "1"})
    for code in (0, 200):
        copy.response.response_code.value = code
        assert parse_entry(copy).grpc_status is grpc.StatusCode.CANCELLED
    copy.common_properties.custom_tags[FLAGS_TAG] = "UF"
    copy.response.response_code.value = 503
    assert parse_entry(copy).grpc_status is grpc.StatusCode.UNAVAILABLE


def test_a_request_is_no_copy_whatever_its_headers_are():
    entry = call(access_log_type=AccessLogType.DownstreamEnd)
    entry.request.request_headers[MIRRORED_HEADER] = "1"
    entry.request.authority = "vision-shadow"
    assert not parse_entry(entry).mirrored


@pytest.mark.parametrize(
    ("header", "cookies"),
    [
        ("session=s1", {"session": "s1"}),
        ('a=b; session="s1"; secret=x', {"session": "s1"}),
        ("session=a=b;tier=gold", {"session": "a=b", "tier": "gold"}),
        ("Session=s1; xsession=s2", {}),
        ("session", {"session": ""}),
        (";;=;", {}),
        ("", {}),
    ],
)
def test_only_cookies_that_name_a_user_are_kept(header, cookies):
    entry = call()
    entry.request.request_headers["cookie"] = header
    record = parse_entry(entry, user_cookies={"session", "tier"})
    assert record.cookies == cookies
    assert "cookie" not in record.headers
    assert parse_entry(entry).cookies == {}


def report(**load):
    return base64.b64encode(LoadReport(**load).to_bytes()).decode()


@pytest.mark.parametrize(
    ("trailer", "utilization"),
    [
        (report(application_utilization=0.5, cpu_utilization=0.9), 0.5),
        (report(cpu_utilization=0.9), 0.9),
        (report(application_utilization=1.5), 1.5),
        # Base64 may come without its padding.
        (report(application_utilization=0.5).rstrip("="), 0.5),
        ("", 0.0),
        (report(application_utilization=-1.0), None),
        (report(application_utilization=math.inf), None),
        ("not base64!", None),
        ("////", None),
    ],
)
def test_the_load_of_the_server_comes_from_its_report(trailer, utilization):
    record = parse_entry(call(trailers={"endpoint-load-metrics-bin": trailer}))
    assert record.utilization == utilization
    assert record.trailers == {}
    assert parse_entry(call()).utilization is None


def test_a_mark_of_the_route_tells_that_callers_chose_it():
    entry = call()
    for mark, by_headers in (("1", True), ("-", False)):
        entry.common_properties.custom_tags.update({BY_HEADERS_TAG: mark})
        assert parse_entry(entry).by_headers is by_headers
    assert not parse_entry(call()).by_headers


def timed_out(route_timeout_ms="-", seconds=0.5, flag="-"):
    entry = call(trailers={"grpc-status": "4"})
    entry.common_properties.custom_tags.update({TIMEOUT_TAG: route_timeout_ms, FLAGS_TAG: flag})
    entry.common_properties.duration.FromNanoseconds(int(seconds * 1e9))
    return entry


@pytest.mark.parametrize(
    ("entry", "by_proxy"),
    [
        # Envoy sends its timeout along, and the server was faster than Envoy.
        (timed_out("500", 0.5), True),
        (timed_out("500", 0.52), True),
        (timed_out("12.5", 0.0125), True),
        (timed_out("500", 0.3), False),
        (timed_out("500", 0.5, flag="DR"), False),
        (timed_out(), False),
        (timed_out("nan"), False),
        (timed_out("1e999"), False),
        (timed_out("-1"), False),
        (cut("UT"), True),
        (cut("DT"), True),
        (cut("UMSDR"), True),
        (cut("DR", timeout="1S", seconds=1.0), False),
        (call(trailers={"grpc-status": "0"}), False),
        # Envoy ended the call at the deadline that its caller sent along.
        (cut("UT", timeout="1S", seconds=1.0), False),
        (cut("UT", "response_timeout", timeout="500m", seconds=0.501), False),
        (cut("UMSDR", "max_duration_timeout", timeout="1010m", seconds=1.0), False),
        (cut("UT", timeout="1S", seconds=0.5), True),
        (cut("UT", timeout="٣S", seconds=9), True),
    ],
)
def test_a_timeout_of_the_proxy_is_told_from_the_callers_deadline(entry, by_proxy):
    assert parse_entry(entry).proxy_timeout is by_proxy


@pytest.mark.parametrize(
    ("route_timeout_ms", "by_proxy"), [("500", True), ("1000", True), ("2000", False), ("-", False)]
)
def test_a_callers_deadline_counts_unless_the_route_allows_less(route_timeout_ms, by_proxy):
    entry = cut("UT", timeout="1S", seconds=1.0, headers={"grpc-status": "14"})
    entry.common_properties.custom_tags[TIMEOUT_TAG] = route_timeout_ms
    record = parse_entry(entry)
    assert record.proxy_timeout is by_proxy
    code = grpc.StatusCode.UNAVAILABLE if by_proxy else grpc.StatusCode.DEADLINE_EXCEEDED
    assert record.grpc_status is code


def test_other_filter_state_is_no_message_count():
    entry = call()
    packed = entry.common_properties.filter_state_objects["envoy.filters.http.grpc_stats"]
    packed.Pack(FilterObject(request_message_count=2))
    assert parse_entry(entry).request_messages == 2
    packed.value = b"\xff"
    assert parse_entry(entry).request_messages is None
    packed.Pack(StringValue(value="a"))
    assert parse_entry(entry).request_messages is None


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ({"socket_address": {"address": "10.0.0.1", "port_value": 1}}, "10.0.0.1:1"),
        ({"socket_address": {"address": "::1", "port_value": 1}}, "[::1]:1"),
        ({"pipe": {"path": "/a"}}, "unix:/a"),
        ({"envoy_internal_address": {"server_listener_name": "a"}}, ""),
        ({}, ""),
    ],
)
def test_an_address_is_written_in_dial_form(address, text):
    assert address_text(Address(**address)) == text


_ENTRIES = messages(HTTPAccessLogEntry)


@given(_ENTRIES)
def test_any_entry_is_parsed(entry):
    record = parse_entry(entry, "p")
    if record is None:
        assert entry.common_properties.intermediate_log_entry or (
            entry.common_properties.access_log_type != AccessLogType.NotSet
        )
        return
    assert math.isfinite(record.duration_s)
    assert record.duration_s >= 0
    assert record.is_grpc == (record.grpc_status is not None)
    assert record.port is None or 0 <= record.port <= 99_999
    hash(record.response_flags)
    assert record_message(record).SerializeToString()


@given(_ENTRIES, st.binary(max_size=8), st.data())
def test_invalid_utf8_spoils_only_its_own_string(entry, spoilt, data):
    marker = "0123456789abcdef"
    entry.common_properties.stream_id = marker
    entry.request.request_id = "mine"
    message = StreamAccessLogsMessage()
    message.http_logs.log_entry.extend([entry, entry])
    wire = message.SerializeToString()
    odd = spoilt.ljust(len(marker), b"\xff")
    read = lenient_parsing.parse(StreamAccessLogsMessage, wire.replace(marker.encode(), odd))
    for each in read.http_logs.log_entry:
        assert each.common_properties.stream_id == odd.decode(errors="replace")
        each.common_properties.stream_id = marker
    assert read == message


@given(st.binary(max_size=200))
def test_malformed_data_raises_only_a_decode_error(data):
    with contextlib.suppress(DecodeError):
        lenient_parsing.parse(StreamAccessLogsMessage, data)


def test_a_message_nested_too_deeply_is_refused():
    data = b""
    for _ in range(2_000):
        # A Struct has a field whose value is a Struct.
        data = _nested(1, _nested(2, _nested(5, data)))
    with pytest.raises(DecodeError):
        lenient_parsing.parse(Struct, data)


def _nested(number, content):
    length, encoded = len(content), bytearray()
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes([number << 3 | 2]) + bytes(encoded) + content
