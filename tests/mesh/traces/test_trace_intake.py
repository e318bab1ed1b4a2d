"""Validation of received spans."""

import hypothesis.strategies as st
from hypothesis import given
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_spans import START_NS, request, span

from tidegate.mesh.traces.intake import Refusal, TraceLimits, read_batch

LIMITS = TraceLimits(max_span_bytes=2_000, max_attributes=4, max_batch_spans=3)


def refused(*spans, **resource):
    batch = read_batch(request(*spans, **resource), LIMITS)
    assert not batch.spans
    return dict(batch.refused)


def test_the_fields_of_a_span_are_read():
    sent = span(7, 2, parent=1, name="infer", duration_ms=2, failed=True)
    (read,) = read_batch(request(sent), LIMITS).spans
    assert (read.trace_id[-1], read.span_id[-1], read.parent_id[-1]) == (7, 2, 1)
    assert (read.process.service, read.operation) == ("vision", "infer")
    assert (read.start_ns, read.duration_ns, read.is_error) == (START_NS, 2_000_000, True)


def test_ids_must_be_of_their_length_and_not_all_zero():
    no_trace, short_trace, no_span, odd_parent = (span(1, 1) for _ in range(4))
    no_trace.trace_id = bytes(16)
    short_trace.trace_id = b"short"
    no_span.span_id = b""
    odd_parent.parent_span_id = b"odd"
    for bad in (no_trace, short_trace, no_span, odd_parent):
        assert refused(bad) == {Refusal.BAD_ID: 1}


def test_a_parent_id_of_zeros_means_a_root():
    sent = span(1, 1)
    sent.parent_span_id = bytes(8)
    (read,) = read_batch(request(sent), LIMITS).spans
    assert read.parent_id == b""


def test_a_span_needs_a_start_and_storable_times():
    for start, end in ((0, 5), (2**64 - 1, 2**64 - 1), (1, 2**63)):
        bad = span(1, 1)
        bad.start_time_unix_nano, bad.end_time_unix_nano = start, end
        assert refused(bad) == {Refusal.BAD_TIME: 1}


def test_span_that_ends_before_it_begins_took_no_time():
    sent = span(1, 1)
    sent.end_time_unix_nano = 0
    (read,) = read_batch(request(sent), LIMITS).spans
    assert read.duration_ns == 0


def test_large_spans_resources_and_many_attributes_are_refused():
    assert refused(span(1, 1, text="x" * 2_000)) == {Refusal.TOO_LARGE: 1}
    assert refused(span(1, 1), span(1, 2), pod="x" * 2_000) == {Refusal.TOO_LARGE: 2}
    assert refused(span(1, 1, a=1, b=2, c=3, d=4, e=5)) == {Refusal.TOO_MANY_ATTRIBUTES: 1}


def test_valid_spans_are_taken_beside_refused_ones():
    batch = read_batch(request(span(1, 1, text="x" * 2_000), span(1, 2)), LIMITS)
    assert [read.span_id[-1] for read in batch.spans] == [2]
    assert dict(batch.refused) == {Refusal.TOO_LARGE: 1}


def test_spans_beyond_the_batch_are_refused_over_all_resources():
    sent = request(span(1, 1), span(1, 2))
    sent.MergeFrom(request(span(1, 3), span(1, 4), service="other"))
    sent.MergeFrom(request(span(1, 5), service="third"))
    batch = read_batch(sent, LIMITS)
    assert [read.span_id[-1] for read in batch.spans] == [1, 2, 3]
    assert dict(batch.refused) == {Refusal.BATCH_TOO_LARGE: 2}


def test_a_service_without_a_name_gets_opentelemetrys_default():
    sent = request(span(1, 1), service="")
    (read,) = read_batch(sent, LIMITS).spans
    assert read.process.service == "unknown_service"


@given(st.binary(max_size=40), st.binary(max_size=12), st.integers(0, 2**64 - 1), st.integers(0, 9))
def test_every_span_is_either_taken_or_counted(trace, number, time_ns, kind):
    odd = Span(trace_id=trace, span_id=number, start_time_unix_nano=time_ns, kind=kind)
    batch = read_batch(request(odd, span(1, 1)), LIMITS)
    assert len(batch.spans) + sum(batch.refused.values()) == 2


@given(st.binary(max_size=200))
def test_any_parsable_request_is_read(data):
    sent = ExportTraceServiceRequest()
    try:
        sent.ParseFromString(data)
    except Exception:  # noqa: BLE001  # what does not parse never gets here
        return
    count = sum(len(scope.spans) for each in sent.resource_spans for scope in each.scope_spans)
    batch = read_batch(sent, LIMITS)
    assert len(batch.spans) + sum(batch.refused.values()) == count
