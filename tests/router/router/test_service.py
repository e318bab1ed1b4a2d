"""RolloutService over a real gRPC server, with doubles of the mesh and of the source behind it."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import msgspec
import pytest
from google.rpc import error_details_pb2, status_pb2
from router_harness import canary, manual

from tidegate.chassis.server import running
from tidegate.chassis.settings import ChassisSettings
from tidegate.rollout.engine.status import Phase
from tidegate.rollout.messages import spec_message
from tidegate.rollout.traffic import TrafficSplit
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from tidegate.router.errors import StoreError
from tidegate.router.service import SERVICE_NAME, RolloutServicer
from tidegate.router.sqlite_store import SqliteStore

NAME = {"namespace": "models", "name": "vision"}
PROMOTED, ABORTED = rollout_pb2.PHASE_PROMOTED, rollout_pb2.PHASE_ABORTED


class Application:
    """The service on a chassis, around a router with doubles."""

    service_names = (SERVICE_NAME,)

    def __init__(self, router):
        self._router = router
        self.rollouts = RolloutServicer(lambda: {"a.yaml": "a.yaml:3: spec.host: is missing"})

    def register(self, server):
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(self.rollouts, server)

    @asynccontextmanager
    async def run(self, health):
        async with self._router.running() as reconciler:
            with self.rollouts.serving(reconciler):
                health.set_all(True)
                yield


@pytest.fixture
async def service(router):
    application = Application(router)
    settings = ChassisSettings(grpc_port=0, metrics_port=0, drain_delay_s=0)
    async with (
        running(application, settings) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = rollout_pb2_grpc.RolloutServiceStub(channel)
        stub.application = application
        yield stub


async def apply(service, rollout, **options):
    request = rollout_pb2.ApplyRequest(rollout=spec_message(rollout), **options)
    return await service.Apply(request)


async def error_of(call):
    """The code, reason, message and field violations of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    assert info.domain == "tidegate"
    fields = {each.field: each.description for each in bad.field_violations}
    return caught.value.code(), info.reason, caught.value.details(), fields


async def until_settled(router):
    await router.until(lambda record: record.status.desired and record.status.is_settled)


async def test_an_applied_rollout_is_there_with_its_status(service, router):
    applied = await apply(service, manual())
    assert (applied.changed, applied.generation) == (True, 1)
    await until_settled(router)
    got = (await service.Get(rollout_pb2.GetRequest(**NAME))).rollout
    assert got.spec == spec_message(manual()).spec
    assert got.status.phase == rollout_pb2.PHASE_PROGRESSING
    assert (got.status.stage, got.status.stages, got.status.in_force) == (1, 2, True)
    assert got.status.desired.weights == {"v1": 90.0, "v2": 10.0}
    assert [each.kind for each in got.status.last_events][:2] == ["Started", "StageEntered"]


async def test_a_dry_run_checks_and_changes_nothing(service, router):
    assert (await apply(service, manual(), dry_run=True)).changed
    assert router.record() is None
    await apply(service, manual())
    assert not (await apply(service, manual(), dry_run=True)).changed


async def test_a_wrong_rollout_is_refused_with_each_field(service):
    message = spec_message(manual())
    message.spec.baseline = "v2"
    message.spec.strategy.manual.weights[0] = 101
    code, reason, _, fields = await error_of(
        service.Apply(rollout_pb2.ApplyRequest(rollout=message))
    )
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ROLLOUT_REFUSED")
    assert "rollout.spec.strategy.manual.weights[0]" in fields


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_rollout_that_its_source_cannot_count_is_refused(service, router, dry_run):
    router.source.unsupported = "sticky needs the source accessLog"
    request = rollout_pb2.ApplyRequest(rollout=spec_message(manual()), dry_run=dry_run)
    code, reason, _, fields = await error_of(service.Apply(request))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EVIDENCE_UNSUPPORTED")
    assert fields == {"rollout.spec.evidence": "sticky needs the source accessLog"}


async def test_an_empty_apply_is_refused(service):
    code, reason, _, fields = await error_of(service.Apply(rollout_pb2.ApplyRequest()))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ROLLOUT_REFUSED")
    assert fields


async def test_a_name_finds_the_only_rollout_that_has_it(service):
    await apply(service, manual())
    got = await service.Get(rollout_pb2.GetRequest(name="vision"))
    assert got.rollout.metadata.namespace == "models"
    other = manual(host="llm").model_copy(
        update={"metadata": manual().metadata.model_copy(update={"namespace": "other"})}
    )
    await apply(service, other)
    code, _, _, fields = await error_of(service.Get(rollout_pb2.GetRequest(name="vision")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields == {"namespace": "is empty, and vision is in models and other; name one of them"}


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        (name, getattr(rollout_pb2, f"{name}Request"))
        for name in (
            *("Get", "Delete", "Pause", "Resume", "Promote", "Abort", "Retry", "Undo"),
            "GetHistory",
        )
    ],
)
async def test_an_unknown_rollout_is_not_found_and_an_empty_name_is_refused(
    service, method, request_type
):
    call = getattr(service, method)
    code, reason, words, _ = await error_of(call(request_type(**NAME)))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "ROLLOUT_UNKNOWN")
    assert words == "there is no rollout models/vision; `tidegate rollout list` shows them"
    code, _, _, fields = await error_of(call(request_type()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields == {"name": "is empty; name a rollout"}


async def test_the_list_has_every_rollout_by_name_and_the_problems_of_files(service):
    await apply(service, manual("b", "llm"))
    await apply(service, manual("a"))
    answer = await service.List(rollout_pb2.ListRequest())
    assert [each.metadata.name for each in answer.rollouts] == ["a", "b"]
    (problem,) = answer.file_problems
    assert (problem.file, problem.message) == ("a.yaml", "a.yaml:3: spec.host: is missing")
    assert not (await service.List(rollout_pb2.ListRequest(namespace="x"))).rollouts


async def test_commands_answer_with_the_rollout_after_them(service, router):
    await apply(service, manual())
    await until_settled(router)
    paused = await service.Pause(rollout_pb2.PauseRequest(**NAME, reason="lunch"))
    assert paused.rollout.status.phase == rollout_pb2.PHASE_PAUSED
    assert "lunch" in paused.rollout.status.message
    resumed = await service.Resume(rollout_pb2.ResumeRequest(**NAME))
    assert resumed.rollout.status.phase == rollout_pb2.PHASE_PROGRESSING
    approved = await service.Promote(rollout_pb2.PromoteRequest(**NAME))
    assert approved.rollout.status.stage == 2
    await until_settled(router)
    full = await service.Promote(rollout_pb2.PromoteRequest(**NAME, full=True))
    assert full.rollout.status.phase in (rollout_pb2.PHASE_PROMOTING, PROMOTED)
    await router.until(lambda record: record.has_ended)
    undone = await service.Undo(rollout_pb2.UndoRequest(**NAME))
    assert undone.rollout.status.phase in (rollout_pb2.PHASE_ABORTING, ABORTED)
    await router.until(lambda record: record.has_ended)
    again = await service.Retry(rollout_pb2.RetryRequest(**NAME))
    assert again.rollout.status.phase in (
        rollout_pb2.PHASE_PENDING,
        rollout_pb2.PHASE_PROGRESSING,
    )
    await service.Abort(rollout_pb2.AbortRequest(**NAME))
    await router.until(lambda record: record.has_ended)
    await service.Delete(rollout_pb2.DeleteRequest(**NAME))
    assert not (await service.List(rollout_pb2.ListRequest())).rollouts


async def test_a_command_that_the_phase_forbids_is_a_failed_precondition(service, router):
    await apply(service, manual())
    await until_settled(router)
    code, reason, words, _ = await error_of(service.Retry(rollout_pb2.RetryRequest(**NAME)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROLLOUT_PHASE")
    assert "progressing" in words
    code, reason, words, _ = await error_of(service.Delete(rollout_pb2.DeleteRequest(**NAME)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROLLOUT_PHASE")
    assert words == ("models/vision is progressing; abort it first, or wait until it has ended")


@pytest.mark.parametrize("gone", ["host", "baseline"])
async def test_a_rollout_whose_host_or_baseline_is_gone_can_be_aborted_and_deleted(
    service, router, gone
):
    await apply(service, manual())
    await until_settled(router)
    if gone == "host":
        del router.mesh.traffic["vision"]
    else:
        found = router.mesh.traffic["vision"]
        router.mesh.traffic["vision"] = msgspec.structs.replace(
            found, split=TrafficSplit(weights={"v2": 100.0}), versions=("v2",), ready=("v2",)
        )
    await service.Abort(rollout_pb2.AbortRequest(**NAME))
    record = await router.until(lambda record: record.has_ended)
    assert record.status.phase is Phase.ABORTED
    assert "traffic was not changed: " in record.status.message
    await service.Delete(rollout_pb2.DeleteRequest(**NAME))
    assert router.record() is None


async def test_an_abort_that_cannot_be_written_has_a_reason_of_its_own(
    service, router, monkeypatch
):
    def full(self, writes):
        raise StoreError("the disk is full")

    await apply(service, manual())
    await until_settled(router)
    monkeypatch.setattr(SqliteStore, "_write", full)
    code, reason, _, _ = await error_of(service.Pause(rollout_pb2.PauseRequest(**NAME)))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "STORE_FILE")
    code, reason, words, _ = await error_of(service.Abort(rollout_pb2.AbortRequest(**NAME)))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "ROLLOUT_UNWRITTEN")
    assert "models/vision is aborting, and its traffic follows" in words
    await router.until(lambda record: record.has_ended)
    monkeypatch.undo()
    await router.until(lambda record: not record.problem)


async def test_a_promote_given_twice_approves_one_stage(service, router):
    await apply(service, manual(weights=(10, 20, 50)))
    await until_settled(router)
    promote = rollout_pb2.PromoteRequest(**NAME, stage=1)
    approved = await service.Promote(promote)
    assert approved.rollout.status.stage == 2
    await until_settled(router)
    code, reason, words, _ = await error_of(service.Promote(promote))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROLLOUT_PHASE")
    assert words.startswith("vision is at stage 2 by now, and the command is for stage 1; look at")
    assert router.record().status.stage == 1
    # Without a stage it is for any.
    assert (await service.Promote(rollout_pb2.PromoteRequest(**NAME))).rollout.status.stage == 3


async def test_an_undo_after_later_changes_needs_force(service, router):
    await apply(service, canary())
    await router.until_phase(Phase.PROMOTED)
    router.mesh.change("vision", TrafficSplit(weights={"v2": 60.0, "v3": 40.0}))
    code, reason, words, _ = await error_of(service.Undo(rollout_pb2.UndoRequest(**NAME)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROLLOUT_PHASE")
    assert "--force" in words
    await service.Undo(rollout_pb2.UndoRequest(**NAME, force=True))
    await router.until_phase(Phase.ABORTED)
    assert router.mesh.traffic["vision"].split.weights["v1"] == 100


async def test_a_reason_is_one_line_without_control_characters(service, router):
    await apply(service, manual())
    await until_settled(router)
    reason = "\x1b]0;owned\x07\n14:02  Promoted"
    paused = await service.Pause(rollout_pb2.PauseRequest(**NAME, reason=reason))
    assert paused.rollout.status.message == (r"paused by a user: \x1b]0;owned\x07 14:02 Promoted")


async def test_the_history_can_be_read_from_a_number_on(service, router):
    await apply(service, canary())
    await router.until(lambda record: record.has_ended)
    whole = (await service.GetHistory(rollout_pb2.GetHistoryRequest(**NAME))).events
    assert [each.number for each in whole] == list(range(1, len(whole) + 1))
    rest = (await service.GetHistory(rollout_pb2.GetHistoryRequest(**NAME, after=3))).events
    assert list(rest) == list(whole)[3:]


async def test_a_changed_rollout_is_shown_with_the_generation_to_wait_for(service, router):
    await apply(service, manual())
    await until_settled(router)
    with router.mesh.held():
        applied = await apply(service, manual(weights=(20,)))
        assert (applied.changed, applied.generation) == (True, 2)
        assert applied.rollout.status.generation == 1
        assert list(applied.rollout.spec.strategy.manual.weights) == [20.0]
    await router.until(lambda record: record.status.generation == 2)


async def test_a_watch_gets_every_event_once_until_the_rollout_is_removed(service, router):
    await apply(service, canary())
    watched = service.Watch(rollout_pb2.WatchRequest(**NAME))
    events, last = [], None
    async for message in watched:
        events += [each.number for each in message.events]
        if message.removed:
            break
        last = message.rollout
        if last.status.phase == PROMOTED:
            await service.Delete(rollout_pb2.DeleteRequest(**NAME))
    assert last.status.phase == PROMOTED
    first = last.status.last_events[-1].number - len(events) + 1
    assert events == list(range(first, last.status.last_events[-1].number + 1))
    assert await watched.code() is grpc.StatusCode.OK


async def test_a_watch_of_all_gets_rollouts_that_come_later(service, router):
    watched = service.Watch(rollout_pb2.WatchRequest())
    await apply(service, manual("a"))
    await apply(service, manual("b", "llm"))
    names = set()
    async for message in watched:
        names.add(message.rollout.metadata.name)
        if names == {"a", "b"}:
            break
    watched.cancel()


async def test_a_slow_watcher_misses_no_event(service, router):
    """More events than a record keeps in memory: the rest comes from the store."""
    await apply(service, manual())
    await until_settled(router)
    watched = service.Watch(rollout_pb2.WatchRequest(**NAME))
    await watched.read()
    before = router.record().status.events
    for _ in range(15):
        await service.Pause(rollout_pb2.PauseRequest(**NAME))
        await service.Resume(rollout_pb2.ResumeRequest(**NAME))
    until, numbers = router.record().status.events, []
    while not numbers or numbers[-1] < until:
        numbers += [each.number for each in (await watched.read()).events]
    assert numbers == list(range(before + 1, until + 1))
    watched.cancel()


async def test_a_watch_of_an_unknown_rollout_is_refused(service):
    watched = service.Watch(rollout_pb2.WatchRequest(**NAME))
    code, reason, *_ = await error_of(watched.read())
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "ROLLOUT_UNKNOWN")


async def test_a_watch_ends_when_the_server_drains(service, router):
    await apply(service, manual())
    watched = service.Watch(rollout_pb2.WatchRequest(**NAME))
    await watched.read()
    service.application.rollouts.shut_down()
    code, *_ = await error_of(_read_to_the_end(watched))
    assert code is grpc.StatusCode.UNAVAILABLE


async def _read_to_the_end(watched):
    async with asyncio.timeout(10):
        while await watched.read() is not grpc.aio.EOF:
            pass


async def test_a_service_that_is_starting_is_unavailable():
    servicer = RolloutServicer()
    with pytest.raises(Exception, match="the router is starting or shutting down"):
        await servicer.List(rollout_pb2.ListRequest(), None)
