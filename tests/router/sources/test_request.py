"""What is read of a record, whatever callers and servers wrote into it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.mesh.v1 import mesh_pb2
from tidegate.rollout.traffic import MatchKind, Sticky
from tidegate.router.sources.request import StreamingMethods, read_request

HEADER = Sticky(kind=MatchKind.HEADER, name="x-user-id")
COOKIE = Sticky(kind=MatchKind.COOKIE, name="session")


def read(sticky=None, methods=None, **fields):
    return read_request(mesh_pb2.RequestRecord(**fields), methods or StreamingMethods(), sticky)


def test_a_whole_record_is_read():
    record = mesh_pb2.RequestRecord(
        subset="v2",
        grpc_status=0,
        method="/a.B/C",
        trace_id="t",
        request_id="r",
        response_messages=3,
        utilization=0.5,
        mirrored=True,
        route="main",
        trailers={
            "tidegate-tokens-out": "7",
            "tidegate-chars-out": "20",
            "tidegate-finish": "stop",
            "tidegate-ttft-ms": "12.5",
            "tidegate-top1": "285",
            "tidegate-confidence": "0.9731",
        },
    )
    record.start.FromNanoseconds(1_500_000_000)
    record.duration.FromNanoseconds(250_000_000)
    record.time_to_first_byte.FromNanoseconds(50_000_000)
    found = read_request(record, StreamingMethods())
    assert (found.version, found.code, found.ok, found.id) == ("v2", "OK", True, "t/r")
    assert found.start_s == pytest.approx(1.5)
    assert (found.duration_s, found.first_byte_s) == pytest.approx((0.25, 0.05))
    assert (found.tokens, found.characters, found.finish) == (7, 20, "stop")
    assert (found.label, found.confidence, found.first_token_s) == ("285", 0.9731, 0.0125)
    assert (found.utilization, found.messages, found.streams) == (0.5, 3, True)
    assert found.is_copy
    assert not found.is_testers


def test_durations_that_are_compared_with_copies_leave_out_the_caller():
    record = mesh_pb2.RequestRecord(grpc_status=0)
    record.duration.FromMilliseconds(500)
    assert read_request(record, StreamingMethods(), mirrored=True).duration_s == 0.5
    record.time_to_last_byte.FromMilliseconds(20)
    assert read_request(record, StreamingMethods(), mirrored=True).duration_s == 0.02
    assert read_request(record, StreamingMethods()).duration_s == 0.5


def test_an_empty_record_has_nothing():
    found = read()
    assert (found.code, found.ok, found.id, found.user) == ("", False, "", "")
    assert found.tokens is found.first_byte_s is found.utilization is found.messages is None


@pytest.mark.parametrize(("status", "ok"), [(200, True), (404, False), (503, False), (0, False)])
def test_an_http_request_is_ok_by_its_status(status, ok):
    assert read(http_status=status).ok is ok


def test_grpc_status_and_not_the_http_status_tells_a_failure():
    assert not read(http_status=200, grpc_status=13).ok
    assert read(grpc_status=99).code == "UNKNOWN"


@pytest.mark.parametrize(("sticky", "user"), [(HEADER, "ann"), (COOKIE, "s1"), (None, "")], ids=str)
def test_the_user_is_the_value_of_the_sticky_header_or_cookie(sticky, user):
    found = read(sticky, headers={"x-user-id": "ann"}, cookies={"session": "s1"})
    assert found.user == user


@pytest.mark.parametrize(("route", "is_testers"), [("tidegate-tester-0", True), ("main", False)])
def test_a_testers_route_is_told_by_its_name(route, is_testers):
    assert read(route=route).is_testers is is_testers


def test_a_method_streams_once_a_request_had_several_messages():
    methods = StreamingMethods()

    def streams(method, messages=None):
        fields = {} if messages is None else {"response_messages": messages}
        return read(methods=methods, method=method, grpc_status=0, **fields).streams

    assert not streams("/a", 1)
    assert streams("/a", 2)
    # From now on also with one message, and if nobody counts messages.
    assert streams("/a", 1)
    assert streams("/a")
    assert not streams("/b", 1)


def test_remembered_methods_are_bounded():
    methods = StreamingMethods()
    streaming = [methods.streams(f"/{number}", 2) for number in range(2000)]
    assert streaming.count(True) == 1000


@pytest.mark.parametrize("text", ["", "-1", "1.5", "٣", "x", "1" * 100, "1_0", " 1"])
def test_a_senseless_count_is_absent(text):
    assert read(trailers={"tidegate-tokens-out": text}).tokens is None


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "x", "1" * 100, "1e999"])
def test_a_senseless_number_is_absent(text):
    trailers = {"tidegate-confidence": text, "tidegate-ttft-ms": text}
    found = read(trailers=trailers)
    assert found.confidence is found.first_token_s is None


@given(
    st.dictionaries(
        st.sampled_from(["tokens-out", "chars-out", "finish", "top1", "confidence", "ttft-ms"]),
        st.text(max_size=200),
    ),
    st.floats(),
    st.integers(0, 2**32 - 1),
)
def test_no_record_makes_the_reader_fail(trailers, utilization, status):
    found = read(
        trailers={f"tidegate-{name}": value for name, value in trailers.items()},
        utilization=utilization,
        grpc_status=status,
    )
    assert len(found.label) <= 64
