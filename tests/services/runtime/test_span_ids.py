"""Spans with chosen ids: spans of several processes form one trace."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased

from tidegate.runtime import tracing
from tidegate.runtime.span_ids import ChosenIds, SpanIds
from tidegate.runtime.tracing import LinkedSpan, record_span

CALL = SpanIds(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)


@pytest.fixture
def recorded():
    """Installs providers with a sampler, and gives their finished spans."""
    exporter = InMemorySpanExporter()

    def install(sampler=ALWAYS_ON):
        provider = TracerProvider(
            sampler=ParentBased(sampler), id_generator=ChosenIds(), shutdown_on_exit=False
        )
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracing.install(provider)
        return exporter.get_finished_spans

    yield install
    tracing.install(None)


def record_tree(name):
    root = SpanIds.of_names(name, "")
    parent = tracing.parent_of(root, "root")
    record_span("child", 10, 20, parent, ids=SpanIds.of_names(name, "child"))
    record_span("root", 5, 20, tracing.no_parent(), ids=root)


def test_the_same_names_give_the_same_ids():
    assert SpanIds.of_names("a", "b") == SpanIds.of_names("a", "b")
    one, other = SpanIds.of_names("a", "b"), SpanIds.of_names("a", "c")
    assert one.trace_id == other.trace_id
    assert one.span_id != other.span_id
    assert SpanIds.of_names("a2", "b").trace_id != one.trace_id


@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        ("", ""),
        ("0" * 32, "1" * 16),
        ("1" * 32, "0" * 16),
        ("1" * 31, "1" * 16),
        ("1" * 32, ""),
        ("x" * 32, "1" * 16),
        ("-" + "1" * 31, "1" * 16),
    ],
)
def test_malformed_ids_name_no_span(trace_id, span_id):
    assert SpanIds.parse(trace_id, span_id) is None


def test_well_formed_ids_are_read():
    assert SpanIds.parse("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331") == CALL


def test_a_child_that_comes_before_its_root_is_below_it(recorded):
    finished = recorded()
    record_tree("a rollout")
    child, root = finished()
    assert child.context.trace_id == root.context.trace_id
    assert child.parent.span_id == root.context.span_id
    assert root.parent is None
    assert (root.context.trace_id, root.context.span_id) == (
        SpanIds.of_names("a rollout", "").trace_id,
        SpanIds.of_names("a rollout", "").span_id,
    )


def test_other_spans_have_ids_by_chance(recorded):
    finished = recorded()
    record_tree("a rollout")
    record_span("other", 1, 2)
    record_span("other", 1, 2)
    *_, one, other = finished()
    assert len({each.context.trace_id for each in finished()}) == 3
    assert one.context.span_id != other.context.span_id


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, TraceIdRatioBased(0.5)])
def test_a_trace_is_sampled_as_a_whole(recorded, sampler):
    finished = recorded(sampler)
    for number in range(40):
        record_tree(f"rollout {number}")
    names = sorted(each.name for each in finished())
    assert names.count("child") == names.count("root")
    if sampler is ALWAYS_OFF:
        assert names == []
    else:
        assert 2 < names.count("root") < 38


def test_links_and_errors_are_recorded(recorded):
    finished = recorded()
    record_span(
        "Aborting", 1, 2, links=[LinkedSpan(CALL, {"tidegate.why": "UNAVAILABLE"})], error="worse"
    )
    (span,) = finished()
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == (CALL.trace_id, CALL.span_id)
    assert dict(link.attributes) == {"tidegate.why": "UNAVAILABLE"}
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "worse")
