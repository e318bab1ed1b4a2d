"""The waterfall in the terminal: golden text, and properties of any trace."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given
from rich.cells import cell_len

from tidegate.cli.traces.span_tree import rows
from tidegate.cli.traces.waterfall import duration_text, printable, time_text, waterfall
from tidegate.trace_analysis.spans import Link, Span, Trace, read_trace

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
START_US = 1_764_000_000_000_000
CLASSIFY = "tidegate.vision.v1.VisionService/Classify"
MODEL = {
    "tidegate.model": "efficientnet-lite0",
    "tidegate.model.version": "1-int8",
    "tidegate.images": 1,
    "tidegate.batch_size": 4,
}


def view(number, parent, service, operation, start_us, duration_us, **tags):
    return Span(
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else "",
        service=service,
        operation=operation,
        start_us=START_US + start_us,
        duration_us=duration_us,
        tags=tags,
    )


def drawn(*spans, width=80):
    return waterfall(Trace(TRACE_ID, spans), width).plain


def test_call_of_the_vision_server_through_envoy():
    cluster = "outbound|8500|v2|vision.models.svc.cluster.local"
    envoy = {"grpc.status_code": "0", "upstream_cluster": cluster, "response_flags": "-"}
    text = drawn(
        view(1, 0, "tidegate-cli", CLASSIFY, 0, 11_400, **{"rpc.grpc.status_code": 0}),
        view(2, 1, "ingress", "vision.models.svc.cluster.local:8500/*", 300, 10_900, **envoy),
        view(3, 2, "vision", CLASSIFY, 700, 10_200, **{"rpc.response.status_code": "OK"}),
        view(4, 3, "vision", "queue", 800, 1_200, **MODEL),
        view(5, 3, "vision", "decode", 2_000, 2_100, **MODEL),
        view(6, 3, "vision", "batch", 4_100, 400, **MODEL),
        view(7, 3, "vision", "inference", 4_500, 6_200, **MODEL),
    )
    assert text == (
        """\
trace 4bf92f3577b34da6a3ce929d0e0e4736  2025-11-24 16:00:00.000Z
11.4 ms, 7 spans, 3 services, no errors

SPAN                                    START     TIME  0                11.4 ms
tidegate-cli VisionService/Classify      0 µs  11.4 ms  ████████████████████████
│ status=OK
└ ingress vision.models.svc.cluster…   300 µs  10.9 ms  ████████████████████████
  │ cluster=outbound|8500|v2|vision.models.svc.cluster.local
  └ vision VisionService/Classify      700 µs  10.2 ms   ██████████████████████
    ├ queue                            800 µs  1.20 ms   ███
    │   model=efficientnet-lite0  version=1-int8  images=1  batch=4
    ├ decode                          2.00 ms  2.10 ms      █████
    ├ batch                           4.10 ms   400 µs          █
    └ inference                       4.50 ms  6.20 ms           ██████████████"""
    )


def test_a_failed_llm_call_with_an_orphan_span():
    text = drawn(
        view(
            *(1, 0, "llm", "tidegate.llm.v1.LlmService/Chat", 0, 2_400_000),
            **{"rpc.grpc.status_code": 14, "error": True},
            **{"otel.status_description": "the engine died"},
            **{"gen_ai.response.model": "smollm2:1", "gen_ai.usage.input_tokens": 11},
            **{"gen_ai.usage.output_tokens": 42, "gen_ai.response.time_to_first_chunk": 0.0523},
        ),
        view(9, 8, "other", "orphan", 1_200_000, 50_000),
    )
    assert text == (
        """\
trace 4bf92f3577b34da6a3ce929d0e0e4736  2025-11-24 16:00:00.000Z
2.40 s, 2 spans, 2 services, 1 error

SPAN                                    START     TIME  0                 2.40 s
✗ llm LlmService/Chat                    0 µs   2.40 s  ████████████████████████
  status=UNAVAILABLE  model=smollm2:1  tokens in=11  tokens out=42
  first token=52.3 ms  error=the engine died
other orphan (its parent has not co…   1.20 s  50.0 ms              █"""
    )


def test_traces_that_a_span_is_linked_to_are_named():
    decided = view(1, 0, "tidegate-router", "Aborting", 0, 5)
    links = [Link(f"{number:x}" * 32, "1" * 16) for number in (1, 1, 2)]
    text = drawn(replace(decided, links=tuple(links)))
    assert text.splitlines()[-1] == "  trace=1111111111111111  trace=2222222222222222"
    many = replace(
        decided, links=tuple(Link(f"{number:016}{0:016}", "1") for number in range(10, 20))
    )
    assert "and 2 traces more" in drawn(many)


def test_wider_terminals_have_longer_bars_and_names():
    text = drawn(view(1, 0, "ingress", "vision.models.svc.cluster.local:8500/*", 0, 5), width=120)
    assert "ingress vision.models.svc.cluster.local:8500/*" in text
    assert max(map(cell_len, text.splitlines())) == 120


def test_control_characters_are_not_printed():
    text = drawn(view(1, 0, "a\x1b[2J", "b\nc\u202ed\x07", 0, 5, response_flags="\x1b]0;x\x07"))
    assert not set("\x1b\x07\u202e") & set(text)
    assert "b�c�d�" in text


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        *[(0, "0 µs"), (999, "999 µs"), (999.4, "999 µs"), (1_000, "1.00 ms"), (9_994, "9.99 ms")],
        *[(9_995, "10.0 ms"), (99_949, "99.9 ms"), (99_950, "100 ms"), (999_499, "999 ms")],
        *[(999_500, "1.00 s"), (61_000_000, "61.0 s"), (7.2e9, "7200 s"), (4e10, "11 h")],
    ],
)
def test_durations_have_three_digits(microseconds, text):
    assert duration_text(microseconds) == text


def test_a_time_out_of_range_is_left_out():
    assert time_text(2**63) == ""
    assert time_text(0) == "1970-01-01 00:00:00.000Z"


def test_printable_text_is_unchanged():
    assert printable("Größe 猫 ✗") == "Größe 猫 ✗"


def test_trace_of_jaeger_is_read():
    trace = read_trace(
        {
            "traceID": TRACE_ID,
            "processes": {"p1": {"serviceName": "vision", "tags": []}},
            "spans": [
                {
                    "spanID": "2",
                    "references": [
                        {"refType": "FOLLOWS_FROM", "traceID": "x", "spanID": "9"},
                        {"refType": "CHILD_OF", "traceID": TRACE_ID, "spanID": "1"},
                    ],
                    "operationName": "infer",
                    "startTime": 7,
                    "duration": 3,
                    "tags": [{"key": "error", "type": "bool", "value": True}],
                    "processID": "p1",
                },
                {
                    "spanID": "1",
                    "references": [],
                    "operationName": "call",
                    "startTime": 5,
                    "duration": 9,
                    "tags": [],
                    "processID": "p1",
                },
            ],
        }
    )
    assert [span.operation for span in trace.spans] == ["call", "infer"]
    assert (trace.start_us, trace.duration_us) == (5, 9)
    assert (trace.spans[1].parent_id, trace.spans[1].is_error) == ("1", True)


def test_children_stand_under_their_parents_in_their_order():
    spans = [view(4, 2, "s", "d", 3, 1), view(3, 1, "s", "c", 2, 1), view(2, 1, "s", "b", 1, 3)]
    spans.append(view(1, 0, "s", "a", 0, 9))
    trace = Trace(TRACE_ID, tuple(sorted(spans, key=lambda span: span.start_us)))
    assert [(row.span.operation, row.last) for row in rows(trace)] == [
        *[("a", ()), ("b", (False,)), ("d", (False, True)), ("c", (True,))]
    ]


def test_a_cycle_of_parents_is_opened():
    trace = Trace(TRACE_ID, (view(1, 2, "s", "a", 0, 1), view(2, 1, "s", "b", 1, 1)))
    assert [(row.span.operation, row.last) for row in rows(trace)] == [("a", ()), ("b", (True,))]


def test_very_deep_trace_is_drawn():
    spans = [view(number, number - 1, "s", "step", number, 1) for number in range(1, 5_000)]
    lines = drawn(*spans).splitlines()
    assert len(lines) == 5_003
    assert max(map(cell_len, lines)) <= 80


ids = st.integers(0, 6)
texts = st.text(max_size=50)
views = st.builds(
    view,
    st.integers(1, 6),
    ids,
    texts,
    texts,
    st.integers(-(10**15), 10**15),
    st.integers(0, 10**15),
    error=st.booleans(),
    response_flags=texts,
)


@given(st.lists(views, max_size=12), st.integers(64, 200))
def test_any_trace_is_drawn_whole_in_its_width(spans, width):
    ordered = tuple(sorted(spans, key=lambda span: span.start_us))
    trace = Trace(TRACE_ID, ordered)
    placed = rows(trace)
    assert sorted(id(row.span) for row in placed) == sorted(map(id, ordered))
    text = waterfall(trace, width).plain
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert all(character.isprintable() or character == "\n" for character in text)
