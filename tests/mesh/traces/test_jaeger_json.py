"""OpenTelemetry spans in Jaeger's JSON: examples, and a property test that any span is JSON."""

import json
import re

import hypothesis.strategies as st
import pytest
from hypothesis import given
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status
from otlp_spans import MS, START_NS, attributes, span, span_id, trace_id

from tidegate.mesh.traces.jaeger_json import has_tags, trace_object
from tidegate.mesh.traces.query import StoredSpan, StoredTrace


def converted(*spans, service="vision", scope=None, **resource):
    """The spans of one process as a trace in Jaeger's JSON."""
    body = Resource(attributes=attributes(service__name=service, **resource)).SerializeToString()
    stored = tuple(
        StoredSpan(b"1", ScopeSpans(scope=scope, spans=[each]).SerializeToString())
        for each in spans
    )
    trace = trace_object(StoredTrace(spans[0].trace_id, stored, {b"1": body}))
    return json.loads(json.dumps(trace, allow_nan=False))


def tags(span_object):
    return {tag["key"]: (tag["type"], tag["value"]) for tag in span_object["tags"]}


def test_span_is_written_as_jaeger_does():
    sent = span(0xABC, 2, parent=1, name="infer", kind=Span.SPAN_KIND_SERVER, duration_ms=2.5, n=3)
    sent.links.add(trace_id=trace_id(9), span_id=span_id(8))
    event = sent.events.add(time_unix_nano=START_NS + MS, name="first token")
    event.attributes.extend(attributes(index=0))
    trace = converted(sent, scope=InstrumentationScope(name="lib", version="2"), pod="v-1")
    assert trace == {
        "traceID": f"{0xABC:032x}",
        "spans": [
            {
                "traceID": f"{0xABC:032x}",
                "spanID": f"{2:016x}",
                "flags": 0,
                "operationName": "infer",
                "references": [
                    {"refType": "CHILD_OF", "traceID": f"{0xABC:032x}", "spanID": f"{1:016x}"},
                    {"refType": "FOLLOWS_FROM", "traceID": f"{9:032x}", "spanID": f"{8:016x}"},
                ],
                "startTime": START_NS // 1000,
                "duration": 2500,
                "tags": [
                    {"key": "n", "type": "int64", "value": 3},
                    {"key": "otel.scope.name", "type": "string", "value": "lib"},
                    {"key": "otel.scope.version", "type": "string", "value": "2"},
                    {"key": "span.kind", "type": "string", "value": "server"},
                ],
                "logs": [
                    {
                        "timestamp": START_NS // 1000 + 1000,
                        "fields": [
                            {"key": "event", "type": "string", "value": "first token"},
                            {"key": "index", "type": "int64", "value": 0},
                        ],
                    }
                ],
                "processID": "p1",
                "warnings": None,
            }
        ],
        "processes": {
            "p1": {
                "serviceName": "vision",
                "tags": [{"key": "pod", "type": "string", "value": "v-1"}],
            }
        },
        "warnings": None,
    }


def test_failure_has_the_tags_that_readers_look_for():
    sent = span(1, 1, failed=True)
    sent.status.message = "no model"
    assert tags(converted(sent)["spans"][0]) | {
        "otel.status_code": ("string", "ERROR"),
        "otel.status_description": ("string", "no model"),
        "error": ("bool", True),
    } == tags(converted(sent)["spans"][0])
    sent.status.CopyFrom(Status(code=Status.STATUS_CODE_OK))
    assert tags(converted(sent)["spans"][0])["otel.status_code"] == ("string", "OK")
    assert "error" not in tags(converted(sent)["spans"][0])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (AnyValue(string_value="text"), ("string", "text")),
        (AnyValue(bool_value=False), ("bool", False)),
        (AnyValue(int_value=2**53 - 1), ("int64", 2**53 - 1)),
        (AnyValue(int_value=2**53), ("int64", str(2**53))),
        (AnyValue(double_value=0.5), ("float64", 0.5)),
        (AnyValue(double_value=float("nan")), ("float64", "nan")),
        (AnyValue(bytes_value=b"\x00\xff"), ("binary", "AP8=")),
        (AnyValue(), ("string", "")),
        (
            AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()])),
            ("string", "[1,null]"),
        ),
        (
            AnyValue(
                kvlist_value=KeyValueList(
                    values=[KeyValue(key="a", value=AnyValue(double_value=float("inf")))]
                )
            ),
            ("string", '{"a":"inf"}'),
        ),
    ],
)
def test_attributes_keep_their_types(value, written):
    sent = span(1, 1)
    sent.attributes.add(key="key").value.CopyFrom(value)
    assert tags(converted(sent)["spans"][0])["key"] == written


def test_inconsistent_spans_have_a_warning():
    sent = span(1, 1)
    sent.end_time_unix_nano = sent.start_time_unix_nano - 1
    sent.dropped_events_count = 3
    (converted_span,) = converted(sent)["spans"]
    assert converted_span["duration"] == 0
    assert converted_span["warnings"] == [
        "the span ended before it began; its duration is shown as 0",
        "3 events were dropped by the sender",
    ]


def test_processes_are_numbered_as_they_come():
    bodies = {
        name.encode(): Resource(attributes=attributes(service__name=name)).SerializeToString()
        for name in ("client", "ingress")
    }
    spans = tuple(
        StoredSpan(name, ScopeSpans(spans=[span(1, number)]).SerializeToString())
        for number, name in enumerate((b"ingress", b"client", b"ingress"), start=1)
    )
    trace = trace_object(StoredTrace(trace_id(1), spans, bodies))
    assert [each["processID"] for each in trace["spans"]] == ["p1", "p2", "p1"]
    assert trace["processes"]["p1"]["serviceName"] == "ingress"


def test_tags_are_searched_in_the_span_its_events_and_its_process():
    sent = span(1, 1, kind=Span.SPAN_KIND_CLIENT, failed=True, retried=True, n=3, share=0.5)
    sent.events.add(name="x").attributes.extend(attributes(level="high"))
    body = ScopeSpans(scope=InstrumentationScope(name="lib"), spans=[sent]).SerializeToString()
    process = Resource(attributes=attributes(pod="v-1")).SerializeToString()
    everything = {
        "retried": "true",
        "n": "3",
        "share": "0.5",
        "level": "high",
        "pod": "v-1",
        "error": "true",
        "span.kind": "client",
        "otel.scope.name": "lib",
    }
    assert has_tags(everything, body, process)
    for key in everything:
        assert not has_tags({**everything, key: "other"}, body, process)


texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.one_of(
        st.builds(AnyValue, string_value=texts),
        st.builds(AnyValue, bool_value=st.booleans()),
        st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
        st.builds(AnyValue, double_value=st.floats()),
        st.builds(AnyValue, bytes_value=st.binary(max_size=8)),
        st.just(AnyValue()),
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda items: AnyValue(array_value=ArrayValue(values=items)),
            st.lists(inner, max_size=3),
        ),
        st.builds(
            lambda items: AnyValue(
                kvlist_value=KeyValueList(
                    values=[KeyValue(key=key, value=value) for key, value in items]
                )
            ),
            st.lists(st.tuples(texts, inner), max_size=3),
        ),
    ),
    max_leaves=6,
)
attribute_lists = st.lists(st.builds(KeyValue, key=texts, value=values), max_size=4)
numbers = st.integers(0, 2**64 - 1)
counts = st.integers(0, 2**32 - 1)
spans = st.builds(
    Span,
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(min_size=8, max_size=8),
    parent_span_id=st.binary(max_size=9),
    trace_state=texts,
    name=texts,
    flags=counts,
    kind=st.integers(0, 9),
    start_time_unix_nano=numbers,
    end_time_unix_nano=numbers,
    attributes=attribute_lists,
    dropped_attributes_count=counts,
    events=st.lists(
        st.builds(Span.Event, time_unix_nano=numbers, name=texts, attributes=attribute_lists),
        max_size=2,
    ),
    links=st.lists(
        st.builds(Span.Link, trace_id=st.binary(max_size=20), span_id=st.binary(max_size=9)),
        max_size=2,
    ),
    status=st.builds(Status, code=st.integers(0, 5), message=texts),
)


@given(spans, attribute_lists, texts)
def test_any_span_becomes_json(sent, resource, scope):
    body = ScopeSpans(scope=InstrumentationScope(name=scope), spans=[sent]).SerializeToString()
    process = Resource(attributes=resource).SerializeToString()
    stored = StoredTrace(sent.trace_id, (StoredSpan(b"1", body),), {b"1": process})
    text = json.dumps(trace_object(stored), allow_nan=False, ensure_ascii=False)
    (converted_span,) = json.loads(text)["spans"]
    assert re.fullmatch("[0-9a-f]{32}", converted_span["traceID"])
    assert re.fullmatch("[0-9a-f]{16}", converted_span["spanID"])
    assert converted_span["duration"] >= 0
    for tag in converted_span["tags"]:
        kinds = {"string": str, "bool": bool, "int64": int | str, "float64": float | int | str}
        assert isinstance(tag["value"], kinds.get(tag["type"], str))
    assert has_tags({}, body, process)
