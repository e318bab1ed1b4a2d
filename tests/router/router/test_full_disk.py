"""A disk that is full, or a file that is gone, keeps nobody on a bad version and slows nothing."""

from contextlib import ExitStack, contextmanager

import pytest
from rollout_traffic import weights_of
from router_harness import canary, manual

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.router.errors import StoreError, UnwrittenError
from tidegate.router.rollout_loop import RolloutLoop
from tidegate.router.sqlite_store import SqliteStore

VISION = "models/vision"
RAMP = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: vision, namespace: models}
spec:
  host: vision
  baseline: v1
  candidate: v2
  strategy: {canary: {ramp: {harmBudget: 1, startWeight: 1}}}
  objectives: [{signal: grpcFailures, tolerate: 2x}]
  decide: {falseAbort: 0.001%}
"""


@contextmanager
def full_disk(monkeypatch):
    """Nothing can be written while the context is open."""

    def full(self, writes):
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_write", full)
        yield


def is_watching(record):
    status = record.status
    return status.phase is Phase.PROGRESSING and status.desired is not None and status.is_settled


def assert_whole(events):
    assert [each.number for each in events] == list(range(1, len(events) + 1))


async def test_proven_harm_takes_the_traffic_away_and_is_written_later(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until(is_watching)
        router.source.failures["v2"] = 1.0
        with full_disk(monkeypatch):
            record = await router.until_phase(Phase.ABORTED)
            assert weights_of(router.mesh) == [10.0, 0.0]
            assert_whole(await reconciler.history(VISION))
            record = await router.until(lambda record: record.problem)
            assert record.problem == "it could not be written: the disk is full"
        await router.until(lambda record: not record.problem)
        events = await reconciler.history(VISION)
        assert_whole(events)
        assert events == await router.store.history(VISION)
        assert [each.kind for each in events][-3:] == [
            *(EventKind.ABORTING, EventKind.SPLIT_IN_FORCE, EventKind.ABORTED)
        ]
    async with router.running():
        assert router.record().status.phase is Phase.ABORTED


async def test_an_abort_is_carried_out_and_answered_with_what_is_not_written(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(is_watching)
        with full_disk(monkeypatch):
            with pytest.raises(UnwrittenError) as caught:
                await reconciler.command(VISION, CommandKind.ABORT, "too slow")
            assert str(caught.value).startswith(
                "models/vision is aborting, and its traffic follows, but that is not written: the"
                " disk is full. The router writes it as soon as it can"
            )
            await router.until_phase(Phase.ABORTED)
            assert weights_of(router.mesh) == [10.0, 0.0]
        await router.until(lambda record: not record.problem)
        assert_whole(await reconciler.history(VISION))
        await reconciler.command(VISION, CommandKind.RETRY, "")
        await router.until(is_watching)


async def test_an_undo_is_carried_out_too(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until_phase(Phase.PROMOTED)
        with full_disk(monkeypatch):
            with pytest.raises(UnwrittenError):
                await reconciler.command(VISION, CommandKind.UNDO, "")
            await router.until_phase(Phase.ABORTED)
            assert router.mesh.traffic["vision"].split.weights["v1"] == 100


async def test_a_ramp_whose_harm_budget_is_spent_takes_the_traffic_away(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(read_rollouts(RAMP, "test")[0])
        await router.until(is_watching)
        router.source.failures["v2"] = 0.05
        with full_disk(monkeypatch):
            record = await router.until_phase(Phase.PAUSED)
            assert record.status.pause_cause is PauseCause.HARM_BUDGET
            record = await router.until(lambda record: record.status.is_settled)
            assert router.mesh.traffic["vision"].split.weights["v2"] == 0


async def test_nothing_else_moves_traffic_and_the_evidence_goes_on(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until(is_watching)
        with full_disk(monkeypatch):
            for kind in (CommandKind.PAUSE, CommandKind.PROMOTE_FULL):
                with pytest.raises(StoreError, match="the disk is full") as caught:
                    await reconciler.command(VISION, kind, "")
                assert not isinstance(caught.value, UnwrittenError)
            await router.until(lambda record: _trials(record) > 20_000)
            record = router.record()
            assert (record.status.phase, record.status.stage) == (Phase.PROGRESSING, 0)
            rate = router.source.requests_per_s
            assert record.status.requests_per_s == pytest.approx(rate, rel=0.5)
            assert weights_of(router.mesh) == [10.0]
        # The evidence of that time was enough, so the next stages follow at once.
        await router.until_phase(Phase.PROMOTED)
        assert weights_of(router.mesh) == [10.0, 50.0, 100.0]
        assert_whole(await reconciler.history(VISION))


def _trials(record):
    found = record.status.assessments.values()
    return sum(each.candidate_trials for held in found for each in held.objectives)


async def test_a_turn_costs_the_same_however_long_the_disk_is_full(router, monkeypatch):
    seen = []
    advance = RolloutLoop._advance

    def counted(self, inputs, now_s):
        seen.append(len(inputs.windows))
        return advance(self, inputs, now_s)

    monkeypatch.setattr(RolloutLoop, "_advance", counted)
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until(is_watching)
        with full_disk(monkeypatch):
            await router.until(lambda record: _trials(record) > 5000)
            before, seen[:] = _trials(router.record()), []
            await router.until(lambda record: _trials(record) > before + 50_000)
        assert len(seen) > 10
        assert max(seen[len(seen) // 2 :]) <= max(seen[: len(seen) // 2]) + 5


async def test_what_is_owed_is_written_when_the_router_stops(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(is_watching)
        with full_disk(monkeypatch):
            with pytest.raises(UnwrittenError):
                await reconciler.command(VISION, CommandKind.ABORT, "")
            await router.until_phase(Phase.ABORTED)
        # No turn comes between this and the end.
    async with router.running() as reconciler:
        assert router.record().status.phase is Phase.ABORTED
        assert_whole(await reconciler.history(VISION))


async def test_after_a_crash_an_unwritten_abort_looks_like_a_foreign_change(router, monkeypatch):
    with ExitStack() as disk:
        async with router.running() as reconciler:
            await reconciler.apply(manual())
            await router.until(is_watching)
            disk.enter_context(full_disk(monkeypatch))
            with pytest.raises(UnwrittenError):
                await reconciler.command(VISION, CommandKind.ABORT, "")
            await router.until_phase(Phase.ABORTED)
    async with router.running() as reconciler:
        record = await router.until_phase(Phase.PAUSED)
        assert record.status.pause_cause is PauseCause.FOREIGN_CHANGE
        assert router.mesh.traffic["vision"].split.weights["v2"] == 0
        assert_whole(await reconciler.history(VISION))


async def test_a_rollout_that_ended_on_a_full_disk_can_be_deleted(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(is_watching)
        with full_disk(monkeypatch):
            with pytest.raises(UnwrittenError):
                await reconciler.command(VISION, CommandKind.ABORT, "")
            await router.until_phase(Phase.ABORTED)
            with pytest.raises(StoreError):
                await reconciler.delete(VISION)
        await reconciler.delete(VISION)
        assert router.record() is None
    async with router.running():
        assert router.record() is None
