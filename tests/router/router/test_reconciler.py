"""Rollouts run against doubles of the mesh and of the source: what is decided, written and done."""

import asyncio

import pytest
from rollout_traffic import weights_of
from router_harness import canary, manual

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.rollout.traffic import TrafficSplit
from tidegate.router.errors import LeavingError, RefusedError, StoreError, UnknownRolloutError
from tidegate.router.metrics import EVALUATION_FAILURES, EVALUATIONS
from tidegate.router.reconciler import spread
from tidegate.router.sources.source import UnsupportedError
from tidegate.router.sqlite_store import SqliteStore

VISION, LLM = "models/vision", "models/llm"


async def kinds_of(reconciler, key=VISION):
    return [each.kind for each in await reconciler.history(key)]


def at_stage(number):
    def holds(record):
        status = record.status
        return status.stage == number and status.desired is not None and status.is_settled

    return holds


async def test_a_good_candidate_is_promoted(router):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        record = await router.until_phase(Phase.PROMOTED)
        assert weights_of(router.mesh) == [10.0, 50.0, 100.0]
        numbers = [each.number for each in await reconciler.history(record.key)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert router.mesh.traffic["vision"].owner == ""


async def test_a_bad_candidate_is_rolled_back_with_the_numbers(router):
    router.source.failures["v2"] = 0.3
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        record = await router.until_phase(Phase.ABORTED)
        assert weights_of(router.mesh) == [10.0, 0.0]
        assert record.status.reason == "HarmProven"
        assert "grpcFailures" in record.status.decision
        (aborting,) = (
            each for each in await reconciler.history(VISION) if each.kind is EventKind.ABORTING
        )
        assert aborting.numbers["harm_e"] >= aborting.numbers["harm_threshold"]


async def test_an_abort_does_not_wait_for_a_change_that_runs(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        with router.mesh.held():
            await reconciler.command(VISION, CommandKind.PROMOTE, "")
            await router.until(lambda record: not record.status.is_settled)
            await reconciler.command(VISION, CommandKind.ABORT, "too slow")
            await router.until_phase(Phase.ABORTED)
        assert weights_of(router.mesh) == [10.0, 0.0]
        assert router.mesh.attempts == 3


async def test_a_command_is_in_the_status_when_it_is_answered(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        record = await reconciler.command(VISION, CommandKind.PAUSE, "lunch")
        assert record.status.phase is Phase.PAUSED
        assert record.status.pause_cause is PauseCause.USER
        assert "lunch" in record.status.message
        record = await reconciler.command(VISION, CommandKind.RESUME, "")
        assert record.status.phase is Phase.PROGRESSING


async def test_a_command_that_the_phase_forbids_is_refused_and_changes_nothing(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        before = await reconciler.history(VISION)
        with pytest.raises(RefusedError, match="vision is progressing"):
            await reconciler.command(VISION, CommandKind.RESUME, "")
        with pytest.raises(UnknownRolloutError, match="there is no rollout models/other"):
            await reconciler.command("models/other", CommandKind.PAUSE, "")
        assert await reconciler.history(VISION) == before


async def test_commands_that_come_together_are_carried_out_in_order(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        kinds = (CommandKind.PAUSE, CommandKind.RESUME, CommandKind.PAUSE, CommandKind.ABORT)
        await asyncio.gather(*(reconciler.command(VISION, each, "") for each in kinds))
        await router.until_phase(Phase.ABORTED)
        found = await kinds_of(reconciler)
        commanded = (EventKind.PAUSED, EventKind.RESUMED, EventKind.ABORTING)
        assert [each for each in found if each in commanded] == [
            *(EventKind.PAUSED, EventKind.RESUMED, EventKind.PAUSED, EventKind.ABORTING)
        ]


async def test_of_two_rollouts_on_a_host_the_second_is_refused_with_the_name_of_the_first(router):
    async with router.running() as reconciler:
        with router.mesh.held():
            # The first has not yet reached the mesh, which so does not know its owner.
            await reconciler.apply(manual("first"))
            await router.until_phase(Phase.PROGRESSING, key="models/first")
            await reconciler.apply(manual("second"))
            second = await router.until_phase(Phase.REFUSED, key="models/second")
        assert "the rollout models/first has the traffic of vision" in second.status.message
        await reconciler.command("models/first", CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED, key="models/first")
        await reconciler.command("models/second", CommandKind.RETRY, "")
        await router.until_phase(Phase.PROGRESSING, key="models/second")


async def test_many_rollouts_that_begin_at_once_on_one_host_are_one(router):
    async with router.running() as reconciler:
        names = [f"r{number}" for number in range(20)]
        await asyncio.gather(*(reconciler.apply(manual(name)) for name in names))
        for name in names:
            await router.until_phase(Phase.PROGRESSING, Phase.REFUSED, key=f"models/{name}")
        phases = [router.record(f"models/{name}").status.phase for name in names]
        assert phases.count(Phase.PROGRESSING) == 1


async def test_a_fault_of_one_rollout_is_shown_and_stops_no_other(router, monkeypatch):
    read = router.mesh.read

    async def faulty(host):
        if host == "vision":
            raise RuntimeError("a fault of the mesh")
        return await read(host)

    monkeypatch.setattr(router.mesh, "read", faulty)
    failures = EVALUATION_FAILURES._value.get()
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await reconciler.apply(canary("llm", "llm"))
        await router.until_phase(Phase.PROMOTED, key=LLM)
        record = await router.until(lambda record: record.problem)
        assert record.problem == "it could not be evaluated: a fault of the mesh"
        assert EVALUATION_FAILURES._value.get() > failures
        monkeypatch.undo()
        record = await router.until_phase(Phase.PROMOTED)
        assert record.problem == ""


async def test_a_fault_of_the_source_is_shown_and_keeps_nobody_from_aborting(router, monkeypatch):
    async def faulty(key, now_s):
        raise RuntimeError("a fault of the source")

    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        monkeypatch.setattr(router.source, "take", faulty)
        record = await router.until(lambda record: record.problem)
        assert record.problem == "the evidence cannot be taken: a fault of the source"
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        assert weights_of(router.mesh) == [10.0, 0.0]


async def test_a_fault_of_the_evidence_is_shown_and_keeps_nobody_from_aborting(router, monkeypatch):
    def faulty(plan, state, window):
        raise OverflowError("too large")

    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        monkeypatch.setattr("tidegate.rollout.engine.advance.observe", faulty)
        record = await router.until(lambda record: record.problem)
        assert record.problem == "the evidence cannot be judged: too large"
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        assert weights_of(router.mesh) == [10.0, 0.0]


async def test_a_mesh_that_cannot_be_read_is_shown_and_waited_for(router):
    async with router.running() as reconciler:
        with router.mesh.unreadable("nothing answers at 127.0.0.1:1"):
            await reconciler.apply(manual())
            record = await router.until(lambda record: record.problem)
            assert record.problem == "the traffic cannot be read: nothing answers at 127.0.0.1:1"
            assert record.status.phase is Phase.PENDING
        record = await router.until_phase(Phase.PROGRESSING)
        await router.until(lambda record: not record.problem)


async def test_a_rollout_that_its_source_cannot_count_is_refused_before_it_begins(router):
    router.source.unsupported = "sticky needs the source accessLog"
    async with router.running() as reconciler:
        with pytest.raises(UnsupportedError, match="sticky needs the source accessLog"):
            await reconciler.apply(manual())
        assert router.record() is None


async def test_a_rollout_that_its_source_cannot_count_any_more_can_be_aborted(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
    router.source.unsupported = "prometheus has no address"
    async with router.running() as reconciler:
        record = await router.until(lambda record: record.problem)
        assert record.problem == "prometheus has no address"
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        assert weights_of(router.mesh) == [10.0, 0.0]


async def test_missing_evidence_is_shown(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        router.source.missing = "no records of requests arrive: UNAVAILABLE"
        record = await router.until(lambda record: record.problem)
        assert record.problem == "no records of requests arrive: UNAVAILABLE"
        router.source.missing = ""
        await router.until(lambda record: not record.problem)


async def test_a_mesh_that_does_not_answer_delays_no_command(router, monkeypatch):
    router.settings = router.settings_with(read_timeout_s=0.05)
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        forever = asyncio.Event()
        monkeypatch.setattr(router.mesh, "read", lambda host: forever.wait())
        record = await reconciler.command(VISION, CommandKind.ABORT, "")
        assert record.status.phase is Phase.ABORTING
        record = await router.until(lambda record: record.problem)
        assert record.problem == "the traffic cannot be read: no answer within 0.05 s"


async def test_a_split_that_fails_is_tried_again(router):
    router.mesh.fail_next("the proxy rejects it", times=2)
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        assert weights_of(router.mesh) == [10.0]
        assert router.mesh.attempts == 3
        assert EventKind.SPLIT_FAILED in await kinds_of(reconciler)


async def test_a_fault_while_a_split_is_applied_is_an_outcome(router, monkeypatch):
    apply = router.mesh.apply

    async def faulty(host, split, owner, *, urgent):
        monkeypatch.undo()
        raise RuntimeError("a fault")

    monkeypatch.setattr(router.mesh, "apply", faulty)
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        failed = [
            each for each in await reconciler.history(VISION) if each.kind is EventKind.SPLIT_FAILED
        ]
        assert "a fault of the router, see its log" in failed[0].message
        assert router.mesh.apply == apply


async def test_a_split_that_takes_too_long_counts_as_failed(router):
    router.settings = router.settings_with(apply_timeout_s=0.05)
    async with router.running() as reconciler:
        with router.mesh.held():
            await reconciler.apply(manual())
            record = await router.until(lambda record: record.status.apply_failures)
            assert "did not come into force within 0.05 s" in record.status.message
        await router.until(at_stage(0))


async def test_a_host_that_an_earlier_run_left_is_given_back_however_long_that_takes(router):
    left = TrafficSplit(weights={"v1": 90.0, "v2": 10.0})
    router.mesh.change("vision", left, owner=VISION)
    async with router.running() as reconciler:
        with router.mesh.held():
            await reconciler.apply(manual())
            await router.until(lambda record: record.status.reason == "GivingBack")
            begun = EVALUATIONS._value.get()
            while EVALUATIONS._value.get() < begun + 3:
                await asyncio.sleep(router.settings.evaluate_interval_s)
        await router.until(at_stage(0))
        assert weights_of(router.mesh) == [0.0, 10.0]
        assert EventKind.SPLIT_FAILED not in await kinds_of(reconciler)


async def test_a_foreign_change_pauses_the_rollout_and_its_requests_do_not_count(router):
    async with router.running() as reconciler:
        await reconciler.apply(canary(last="untilApproved"))
        await router.until(at_stage(1))
        router.mesh.change("vision", TrafficSplit(weights={"v1": 30.0, "v2": 70.0}))
        record = await router.until_phase(Phase.PAUSED)
        assert record.status.pause_cause is PauseCause.FOREIGN_CHANGE
        await reconciler.command(VISION, CommandKind.RESUME, "")
        await router.until(at_stage(1))
        assert router.mesh.traffic["vision"].split.weights == {"v1": 50.0, "v2": 50.0}
    shares = [each[2] for each in router.source.log if each[0] == "epoch"]
    assert {"v1": 0.3, "v2": 0.7} in shares


async def test_an_unchanged_rollout_changes_nothing(router):
    async with router.running() as reconciler:
        assert (await reconciler.apply(manual())).changed
        await router.until(at_stage(0))
        before = await reconciler.history(VISION)
        assert not (await reconciler.apply(manual())).changed
        assert await reconciler.history(VISION) == before


async def test_a_changed_rollout_begins_without_evidence_once_the_baseline_has_all_traffic(
    router,
):
    async with router.running() as reconciler:
        await reconciler.apply(canary(last="untilApproved"))
        await router.until(at_stage(1))
        applied = await reconciler.apply(canary(weights=(5, 20), last="untilApproved"))
        assert applied.changed
        record = await router.until(
            lambda record: record.status.generation == 2 and at_stage(0)(record)
        )
        assert weights_of(router.mesh)[:4] == [10.0, 50.0, 0.0, 5.0]
        assert record.successor is None
        trials = [each.candidate_trials for each in _objectives(record)]
        assert all(each < 2000 for each in trials)
        kinds = await kinds_of(reconciler)
        assert kinds.count(EventKind.SUPERSEDED) == 1
        assert kinds.count(EventKind.STARTED) == 2


def _objectives(record):
    return [each for held in record.status.assessments.values() for each in held.objectives]


def labelled(rollout, **labels):
    metadata = rollout.metadata.model_copy(update={"labels": labels})
    return rollout.model_copy(update={"metadata": metadata})


async def test_a_label_of_a_running_rollout_moves_no_traffic(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        before = await reconciler.history(VISION)
        applied = await reconciler.apply(labelled(manual(), team="vision"))
        assert applied.changed
        assert applied.record.rollout.metadata.labels == {"team": "vision"}
        assert (applied.record.successor, applied.record.status.generation) == (None, 1)
        assert not (await reconciler.apply(labelled(manual(), team="vision"))).changed
        assert await reconciler.history(VISION) == before
    async with router.running():
        assert router.record().rollout.metadata.labels == {"team": "vision"}
        assert weights_of(router.mesh) == [10.0]


async def test_a_label_of_a_promoted_rollout_sends_nobody_back_to_the_old_version(router):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until_phase(Phase.PROMOTED)
        attempts = router.mesh.attempts
        applied = await reconciler.apply(labelled(canary(), team="vision"))
        assert applied.changed
        assert (applied.record.status.phase, applied.record.status.generation) == (
            *(Phase.PROMOTED, 1),
        )
        assert router.mesh.attempts == attempts
        assert router.mesh.traffic["vision"].split.weights == {"v1": 0.0, "v2": 100.0}


async def test_a_label_of_a_rollout_that_waits_for_its_turn_stays(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        with router.mesh.held():
            await reconciler.apply(manual(weights=(20,)))
            await reconciler.apply(labelled(manual(weights=(20,)), team="vision"))
            assert router.record().rollout.metadata.labels == {}
        record = await router.until(
            lambda record: record.status.generation == 2 and at_stage(0)(record)
        )
        assert record.rollout.metadata.labels == {"team": "vision"}
        assert weights_of(router.mesh) == [10.0, 0.0, 20.0]


async def test_the_last_of_several_changes_counts(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        with router.mesh.held():
            await reconciler.apply(manual(weights=(20,)))
            await reconciler.apply(manual(weights=(30,)))
        await router.until(lambda record: record.status.generation == 2 and at_stage(0)(record))
        assert weights_of(router.mesh) == [10.0, 0.0, 30.0]


async def test_a_change_of_an_ended_rollout_begins_at_once(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        applied = await reconciler.apply(manual(weights=(20,)))
        assert applied.record.status.generation == 2
        assert applied.record.successor is None
        await router.until(at_stage(0))
        assert weights_of(router.mesh) == [10.0, 0.0, 20.0]


async def test_a_change_to_another_host_gives_the_first_host_back(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        await reconciler.apply(manual(host="llm"))
        await router.until(lambda record: record.status.generation == 2 and at_stage(0)(record))
        assert weights_of(router.mesh) == [10.0, 0.0]
        assert router.mesh.traffic["vision"].owner == ""
        assert weights_of(router.mesh, "llm") == [10.0]


async def test_only_an_ended_rollout_can_be_deleted(router):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        with pytest.raises(RefusedError, match="models/vision is progressing; abort it first"):
            await reconciler.delete(VISION)
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        await reconciler.delete(VISION)
        assert router.record() is None
        with pytest.raises(UnknownRolloutError):
            await reconciler.delete(VISION)
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        assert (await kinds_of(reconciler))[0] is EventKind.STARTED


async def test_an_ended_rollout_is_not_evaluated(router):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        await router.until_phase(Phase.PROMOTED)
        await reconciler.apply(manual("other", "llm"))
        await router.until(at_stage(0), key="models/other")
        await reconciler.command("models/other", CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED, key="models/other")
        # The last turns may still end.
        await asyncio.sleep(10 * router.settings.evaluate_interval_s)
        evaluations = EVALUATIONS._value.get()
        await asyncio.sleep(10 * router.settings.evaluate_interval_s)
        assert EVALUATIONS._value.get() == evaluations
        assert router.source.watched == {}


async def test_evidence_goes_on_after_a_restart(router):
    async with router.running() as reconciler:
        await reconciler.apply(canary(last="untilApproved"))
        await router.until(at_stage(1))
        record = await router.until(lambda record: _trials(record) > 5000)
        before = _trials(record)
    async with router.running():
        assert _trials(router.record()) >= before
        await router.until(lambda record: _trials(record) > before + 5000)
        assert weights_of(router.mesh) == [10.0, 50.0]


def _trials(record):
    return sum(each.candidate_trials for each in _objectives(record))


async def test_evidence_that_decides_nothing_is_written_now_and_then(router, monkeypatch):
    router.settings = router.settings_with(evidence_interval_s=1e9)
    async with router.running() as reconciler:
        await reconciler.apply(canary(last="untilApproved"))
        await router.until(at_stage(1))
        written = []
        commit = router.store.commit

        async def counted(*writes):
            written.append(writes)
            await commit(*writes)

        monkeypatch.setattr(router.store, "commit", counted)
        before = _trials(router.record())
        await router.until(lambda record: _trials(record) > before + 20_000)
        assert all(each.events for writes in written for each in writes)
    async with router.running():
        # What had not been written is written at the end.
        assert _trials(router.record()) > before + 20_000


async def test_a_step_that_cannot_be_written_is_not_taken(router, monkeypatch):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        commit = router.store.commit

        async def full(*writes):
            raise StoreError("the disk is full")

        monkeypatch.setattr(router.store, "commit", full)
        with pytest.raises(StoreError, match="the disk is full"):
            await reconciler.command(VISION, CommandKind.PROMOTE, "")
        record = await router.until(lambda record: record.problem)
        assert "the disk is full" in record.problem
        assert record.status.stage == 0
        assert weights_of(router.mesh) == [10.0]
        monkeypatch.setattr(router.store, "commit", commit)
        await reconciler.command(VISION, CommandKind.PROMOTE, "")
        await router.until(at_stage(1))
        assert weights_of(router.mesh) == [10.0, 50.0]


async def test_a_command_is_judged_by_an_outcome_whose_write_failed(router, monkeypatch):
    """Its answer may be lost, and the user sees that the split is in force."""
    router.settings = router.settings_with(evaluate_interval_s=3600.0)
    commit, failed = SqliteStore.commit, []

    async def commit_once_without_an_answer(store, *writes):
        kinds = [event.kind for each in writes for event in getattr(each, "events", ())]
        if EventKind.SPLIT_IN_FORCE in kinds and not failed:
            failed.append(kinds)
            raise StoreError("the connection broke")
        await commit(store, *writes)

    monkeypatch.setattr(SqliteStore, "commit", commit_once_without_an_answer)
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(lambda record: "the connection broke" in record.problem)
        assert not router.record().status.is_settled
        await reconciler.command(VISION, CommandKind.PROMOTE, "", stage=1)
        assert router.record().status.stage == 1


async def test_a_router_that_stops_in_the_middle_of_a_change_does_it_again(router):
    async with router.running() as reconciler:
        with router.mesh.held():
            await reconciler.apply(manual())
            await router.mesh.has_begun()
            await router.until(lambda record: record.status.desired_id)
    router.mesh._open.set()
    async with router.running():
        await router.until(at_stage(0))
        assert weights_of(router.mesh) == [10.0]


async def test_a_command_that_waits_when_the_router_stops_gets_an_answer(router, monkeypatch):
    hangs = asyncio.Event()

    async def read(host):
        hangs.set()
        await asyncio.Event().wait()

    async with router.running() as reconciler:
        await reconciler.apply(manual())
        await router.until(at_stage(0))
        monkeypatch.setattr(router.mesh, "read", read)
        await hangs.wait()
        waiting = asyncio.create_task(reconciler.command(VISION, CommandKind.PAUSE, ""))
        await asyncio.sleep(0)
    with pytest.raises(LeavingError, match="the router is shutting down"):
        await waiting


async def test_a_store_that_another_router_has_open_ends_the_start(router):
    async with router.running():
        with pytest.raises(StoreError, match="another process has"):
            async with SqliteStore.opened(router.path):
                pass


def test_evaluations_are_spread_evenly():
    offsets = [spread(number, 5.0) for number in range(1000)]
    tenths = [sum(tenth / 2 <= each < (tenth + 1) / 2 for each in offsets) for tenth in range(10)]
    assert all(90 <= each <= 110 for each in tenths)
