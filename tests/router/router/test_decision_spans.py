"""The decisions of a rollout as spans: one trace for a run, linked to calls."""

import itertools

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from router_harness import canary, manual

from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import Phase
from tidegate.router.decision_spans import MAX_LINKS
from tidegate.router.sources.source import Exemplar
from tidegate.runtime import tracing
from tidegate.runtime.span_ids import ChosenIds

VISION = "models/vision"


@pytest.fixture
def finished():
    """The finished spans, while the process traces."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(id_generator=ChosenIds(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.install(provider)
    yield exporter.get_finished_spans
    tracing.install(None)


def exemplar(number, span_id="1" * 16):
    return Exemplar(
        version="v2", trace_id=f"{number:032x}", span_id=span_id, start_s=1.0, why="UNAVAILABLE"
    )


async def test_a_run_is_one_trace_with_a_span_for_each_event(router, finished):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until_phase(Phase.PROMOTED)
        history = await reconciler.history(VISION)
    spans = finished()
    *events, last = history
    (root,) = [each for each in spans if each.parent is None]
    assert root.name == "rollout models/vision"
    children = [each for each in spans if each is not root]
    assert [each.name for each in children] == [each.kind.value for each in (*events, last)]
    assert {each.context.trace_id for each in spans} == {root.context.trace_id}
    assert {each.parent.span_id for each in children} == {root.context.span_id}
    assert [each.attributes["tidegate.rollout.event"] for each in children] == [
        each.number for each in history
    ]
    # Each begins with the event before it, and the root with the first.
    for before, each in itertools.pairwise(children):
        assert each.start_time == before.end_time
        assert each.end_time >= each.start_time
    assert (root.start_time, root.end_time) == (children[0].start_time, children[-1].end_time)
    assert {each.status.status_code.name for each in spans} == {"UNSET"}


async def test_an_abort_is_linked_to_the_calls_that_stand_for_it(router, finished):
    router.source.failures["v2"] = 0.3
    calls = tuple(exemplar(number) for number in range(1, 30))
    router.source.exemplars = lambda key: (*calls, exemplar(99, span_id=""), exemplar(1))
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until_phase(Phase.ABORTED)
    spans = {each.name: each for each in finished()}
    aborting = spans["Aborting"]
    assert [each.context.trace_id for each in aborting.links] == list(range(1, MAX_LINKS + 1))
    assert dict(aborting.links[0].attributes) == {
        "tidegate.version": "v2",
        "tidegate.why": "UNAVAILABLE",
    }
    assert aborting.status.status_code.name == "ERROR"
    assert "grpcFailures" in aborting.status.description
    assert aborting.attributes["tidegate.rollout"] == VISION
    assert aborting.attributes["tidegate.rollout.numbers.harm_e"] > 1
    assert spans["rollout models/vision"].status.status_code.name == "ERROR"
    # What was in force is no decision on evidence.
    assert spans["SplitInForce"].links == ()


async def test_the_next_run_and_another_process_have_the_right_trace(router, finished):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(lambda record: record.status.is_settled and record.status.desired)
    first = {each.context.trace_id for each in finished()}
    # Another process goes on with the same run.
    async with router.running() as reconciler:
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        assert {each.context.trace_id for each in finished()} == first
        await reconciler.command(VISION, CommandKind.RETRY, "")
        await router.until_phase(Phase.PROGRESSING)
    assert len({each.context.trace_id for each in finished()}) == 2


async def test_without_tracing_nothing_is_recorded(router):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until_phase(Phase.PROMOTED)
    assert not tracing.is_on()
