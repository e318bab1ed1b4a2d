"""Rollouts are kept in their objects on a real API server, whatever happens around them."""

import asyncio
import contextlib
import itertools
import json

import pytest
import pytest_asyncio
from faulty_api import Fault, FaultyApi
from rollout_api import NAMESPACE, rollout_api
from rollout_traffic import SyntheticSource, weights_of
from router_harness import FastClock, canary, manual
from stored_rollouts import manifest_of, varied_run
from traffic_router_double import TrafficRouterDouble

from tidegate.kube.cache import ObjectCache
from tidegate.kube.client import KubeClient
from tidegate.kube.reflector import reflecting
from tidegate.kube.resources import ROLLOUTS
from tidegate.rollout.crd.command import CommandAnswer
from tidegate.rollout.crd.mapping import rollout_of
from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.samples import sample_of
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.router import crd_store
from tidegate.router.crd_store import CrdStore
from tidegate.router.errors import StoreError
from tidegate.router.reconciler import reconciling
from tidegate.router.store import Delete, Put, PutStatus, Stored
from tidegate.router.surroundings import LoopSettings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

_numbers = itertools.count()
_DEADLINE_S = 2.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory):
    async with rollout_api(tmp_path_factory.mktemp("rollouts")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def faulty(api, tmp_path):
    async with FaultyApi.running(api, tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def opened(api, identity="router-0", clock=None):
    """A store, as a process has it that has just begun to lead."""
    async with (
        KubeClient.opened(kubeconfig=api.kubeconfig, deadline_s=_DEADLINE_S) as client,
        reflecting(client, ROLLOUTS, (NAMESPACE,)) as cache,
    ):
        await cache.synced()
        options = {} if clock is None else {"clock": clock}
        store = CrdStore(client, cache, identity, (NAMESPACE,), **options)
        store.cache, store.client = cache, client
        yield store


def fresh(host="vision"):
    """A new rollout."""
    return manual(name=f"rollout-{next(_numbers)}", host=host)


def create(api, rollout):
    values = manifest_of(rollout)
    values["metadata"].pop("generation")
    status, answer = api.create(values)
    assert status == 201, answer
    return answer


async def begin(api, store, rollout=None):
    """Creates the object of a new rollout, and its first status; returns the rollout."""
    rollout = rollout or fresh()
    create(api, rollout)
    await store.commit(
        Stored(rollout=rollout, status=RolloutStatus()),
        PutStatus(key=rollout.key, status=RolloutStatus()),
    )
    return rollout


def event(number, kind=EventKind.WAITING):
    return Event(number=number, time_s=1e9 + number, kind=kind, message=f"event {number}")


def progressing(number=1):
    return RolloutStatus(phase=Phase.PROGRESSING, message=f"step {number}", events=number)


async def stored_by(store, rollout):
    (found,) = [each for each in await store.load() if each.rollout.key == rollout.key]
    return found


def annotate(api, rollout, value):
    api.kubectl(
        "annotate", "--overwrite", "rollout", rollout.metadata.name, f"example.com/a={value}"
    )


async def test_a_store_whose_cache_stays_behind_loads_nothing(api, monkeypatch):
    monkeypatch.setattr(crd_store, "CATCH_UP_S", 0.2)
    async with opened(api) as store:
        await begin(api, store)
        behind = ObjectCache(namespaces=(NAMESPACE,))
        behind.replace(NAMESPACE, (), 1)
        late = CrdStore(store.client, behind, "router-1", (NAMESPACE,))
        with pytest.raises(StoreError, match="watch of Rollouts has not shown the last changes"):
            await late.load()
        behind.replace(NAMESPACE, store.cache.all(), store.cache.resource_version)
        assert len(await late.load()) == len(await store.load())


async def test_a_restart_reads_what_was_written(api):
    run = varied_run(3)
    sample = sample_of(run.status, run.now_s)
    async with opened(api) as store:
        rollout = await begin(api, store)
        await store.commit(
            PutStatus(
                key=rollout.key, status=run.status, events=(event(1), event(2)), sample=sample
            )
        )
        await store.commit(PutStatus(key=rollout.key, status=run.status, events=(event(3),)))
        assert [each.number for each in await store.history(rollout.key, after=1)] == [2, 3]
    async with opened(api, "router-1") as store:
        found = await stored_by(store, rollout)
        assert found == Stored(rollout=rollout, status=run.status)
        assert await store.history(rollout.key) == (event(1), event(2), event(3))
        assert await store.samples(rollout.key) == (sample,)


async def test_a_changed_spec_waits_in_the_object(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        changed = rollout.model_copy(
            update={"spec": rollout.spec.model_copy(update={"candidate": "v3"})}
        )
        name = rollout.metadata.name
        api.kubectl("patch", "rollout", name, "--type=merge", "-p", '{"spec":{"candidate":"v3"}}')
        await store.commit(Put(rollout=rollout, successor=changed))
        status = api.read(name)["status"]
        assert status["executing"]["spec"]["candidate"] == "v2"
        assert status["observedGeneration"] == 2
    async with opened(api) as store:
        assert await stored_by(store, rollout) == Stored(
            rollout=rollout, status=RolloutStatus(), successor=changed
        )
        await store.commit(
            Put(rollout=changed), PutStatus(key=rollout.key, status=RolloutStatus(generation=2))
        )
        assert "executing" not in api.read(name)["status"]
        assert (await stored_by(store, rollout)).successor is None


async def test_a_spec_that_changed_while_nobody_led_does_not_replace_what_runs(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        await store.commit(PutStatus(key=rollout.key, status=progressing()))
    name = rollout.metadata.name
    api.kubectl("patch", "rollout", name, "--type=merge", "-p", '{"spec":{"candidate":"v3"}}')
    async with opened(api) as store:
        found = await stored_by(store, rollout)
        assert found.rollout.spec.candidate == "v2"
        assert rollout_of(api.read(name)).spec.candidate == "v3"


async def test_an_edit_that_changes_nothing_is_observed(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        name = rollout.metadata.name
        same = '{"spec": {"decide": {"within": "120m"}}}'
        api.kubectl("patch", "rollout", name, "--type=merge", "-p", same)
        edited = api.read(name)["metadata"]
        assert edited["generation"] == 2
        assert await store.cache.reaches(edited["resourceVersion"], 5)
        await store.observe(rollout.key)
        found = api.read(name)
        assert found["status"]["observedGeneration"] == 2
        assert await store.cache.reaches(found["metadata"]["resourceVersion"], 5)
        await store.observe(rollout.key)
        assert api.read(name)["metadata"] == found["metadata"]


async def test_an_edit_of_the_object_is_no_obstacle(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        for number in range(1, 4):
            annotate(api, rollout, number)
            await store.commit(PutStatus(key=rollout.key, status=progressing(number)))
        found = api.read(rollout.metadata.name)
        assert found["metadata"]["annotations"] == {"example.com/a": "3"}
        assert found["status"]["message"] == "step 3"


async def test_a_condition_of_another_manager_stays(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        name = rollout.metadata.name
        accepted = {
            "type": "Accepted",
            "status": "False",
            "reason": "SpecRefused",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        api.apply_status(name, {"conditions": [accepted]})
        await store.commit(PutStatus(key=rollout.key, status=progressing()))
        conditions = {each["type"]: each for each in api.read(name)["status"]["conditions"]}
        assert conditions["Accepted"] == accepted
        assert conditions["Progressing"]["status"] == "True"


async def test_of_two_controllers_only_the_newer_one_writes(api):
    async with opened(api, "router-0") as older:
        rollout = await begin(api, older)
        async with opened(api, "router-1") as newer:
            await newer.load()
            await newer.commit(PutStatus(key=rollout.key, status=progressing(7)))
            for _ in range(2):
                with pytest.raises(
                    StoreError, match=rf"another controller writes .* {newer.writer}\. Only one"
                ):
                    await older.commit(PutStatus(key=rollout.key, status=progressing(1)))
            await newer.commit(PutStatus(key=rollout.key, status=progressing(8)))
            async with asyncio.timeout(1):
                await older.taken()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await newer.taken()
        assert api.read(rollout.metadata.name)["status"]["message"] == "step 8"


async def test_a_leader_that_wakes_late_stops_the_next_one_only_until_it_loads_again(api):
    async with opened(api, "router-0") as older, opened(api, "router-1") as newer:
        rollout = await begin(api, older)
        await newer.load()
        await older.commit(PutStatus(key=rollout.key, status=progressing(5)))
        with pytest.raises(StoreError, match="another controller writes"):
            await newer.commit(PutStatus(key=rollout.key, status=progressing(1)))
        found = await stored_by(newer, rollout)
        assert found.status == progressing(5)
        await newer.commit(PutStatus(key=rollout.key, status=progressing(6)))


async def test_the_status_of_a_rollout_never_goes_to_another_object_of_its_name(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        name = rollout.metadata.name
        api.kubectl("delete", "rollout", name)
        with pytest.raises(StoreError, match="is gone"):
            await store.commit(PutStatus(key=rollout.key, status=progressing()))
        made = create(api, rollout)
        with pytest.raises(StoreError, match="was deleted, and another one has its name"):
            await store.commit(PutStatus(key=rollout.key, status=progressing()))
        assert "status" not in api.read(name)
        # Once the rollout is created anew, it has the new object.
        assert await store.cache.reaches(made["metadata"]["resourceVersion"], 5)
        await store.commit(
            Stored(rollout=rollout, status=RolloutStatus()),
            PutStatus(key=rollout.key, status=progressing()),
        )
        assert api.read(name)["status"]["message"] == "step 1"


async def test_a_deleted_rollout_is_forgotten(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        await store.commit(Delete(key=rollout.key))
        assert await store.history(rollout.key) == ()
        assert "phase" in api.read(rollout.metadata.name)["status"]


async def test_an_outage_fails_writes_until_it_is_over(api, faulty):
    async with opened(faulty) as store:
        rollout = await begin(api, store)
        await faulty.refuse()
        with pytest.raises(StoreError, match=f"the status of {rollout.key} cannot be written"):
            await store.commit(PutStatus(key=rollout.key, status=progressing(1)))
        await faulty.accept()
        await store.commit(PutStatus(key=rollout.key, status=progressing(2)))
        assert api.read(rollout.metadata.name)["status"]["message"] == "step 2"


@pytest.mark.parametrize(
    "fault", [Fault.FAIL, Fault.THROTTLE, Fault.DROP, Fault.HANG, Fault.INVALID]
)
async def test_a_refused_write_keeps_nothing(api, faulty, fault):
    async with opened(faulty) as store:
        rollout = await begin(api, store)
        faulty.fault = lambda call: fault if call.path.endswith("/status") else None
        with pytest.raises(StoreError):
            await store.commit(
                PutStatus(key=rollout.key, status=progressing(1), events=(event(1),))
            )
        faulty.fault = lambda call: None
        assert await store.history(rollout.key) == ()
        await store.commit(PutStatus(key=rollout.key, status=progressing(2), events=(event(1),)))
        assert await store.history(rollout.key) == (event(1),)


async def test_a_write_whose_answer_is_lost_is_replaced_by_the_next_one(api, faulty):
    async with opened(faulty) as store:
        rollout = await begin(api, store)
        lost = iter([Fault.LOSE_ANSWER])
        faulty.fault = lambda call: next(lost, None) if call.path.endswith("/status") else None
        with pytest.raises(StoreError):
            await store.commit(
                PutStatus(key=rollout.key, status=progressing(1), events=(event(1),))
            )
        assert api.read(rollout.metadata.name)["status"]["message"] == "step 1"
        await store.commit(PutStatus(key=rollout.key, status=progressing(2), events=(event(1),)))
        found = api.read(rollout.metadata.name)["status"]
        assert found["message"] == "step 2"
        assert [each["number"] for each in found["history"]] == [1]


async def test_an_object_that_changes_all_the_time_is_reported(api, faulty):
    async with opened(faulty) as store:
        rollout = await begin(api, store)
        faulty.fault = lambda call: Fault.CONFLICT if call.path.endswith("/status") else None
        with pytest.raises(StoreError, match="changes all the time"):
            await store.commit(PutStatus(key=rollout.key, status=progressing(1)))


async def test_answers_to_commands_are_written_and_read_back(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        assert store.answered(rollout.key) is None
        refused = CommandAnswer(id="1", accepted=False, message="it is paused")
        await store.answer(rollout.key, refused)
        assert api.read(rollout.metadata.name)["status"]["lastCommand"] == {
            "id": "1",
            "accepted": False,
            "message": "it is paused",
        }
        await store.commit(PutStatus(key=rollout.key, status=progressing(1)))
        assert store.answered(rollout.key) == refused
        await store.commit(PutStatus(key=rollout.key, status=progressing(2), command_id="2"))
        assert store.answered(rollout.key) == CommandAnswer(id="2", accepted=True)
    async with opened(api) as store:
        await store.load()
        assert store.answered(rollout.key) == CommandAnswer(id="2", accepted=True)


async def test_a_command_for_a_refused_object_is_answered_without_a_state(api):
    rollout = fresh()
    create(api, rollout)
    async with opened(api) as store:
        answer = CommandAnswer(id="1", accepted=False, message="its spec is refused")
        await store.load()
        await store.answer(rollout.key, answer)
    async with opened(api) as store:
        assert rollout.key not in [each.rollout.key for each in await store.load()]
        assert store.answered(rollout.key) == answer
        await store.commit(
            Stored(rollout=rollout, status=RolloutStatus()),
            PutStatus(key=rollout.key, status=progressing(1)),
        )
        assert store.answered(rollout.key) == answer


async def test_a_problem_is_written_once(api):
    async with opened(api) as store:
        rollout = await begin(api, store)
        for problem in ("no traffic", "no traffic", ""):
            await store.tell_problem(rollout.key, problem)
            found = api.read(rollout.metadata.name)
            assert found["status"].get("problem", "") == problem
        before = found["metadata"]["resourceVersion"]
        await store.tell_problem(rollout.key, "")
        assert api.read(rollout.metadata.name)["metadata"]["resourceVersion"] == before


async def test_a_damaged_status_keeps_nobody_from_loading_the_others(api):
    async with opened(api) as store:
        good, bad = await begin(api, store), await begin(api, store)
        name = bad.metadata.name
        broken = json.dumps({"status": {"evidence": {"state": "broken"}}})
        api.kubectl("patch", "rollout", name, "--subresource=status", "--type=merge", "-p", broken)
    async with opened(api) as store:
        keys = [each.rollout.key for each in await store.load()]
        assert good.key in keys
        assert bad.key not in keys


async def test_several_rollouts_in_a_commit_are_a_mistake(api):
    async with opened(api) as store:
        with pytest.raises(ValueError, match="about one rollout, not 2"):
            await store.commit(
                PutStatus(key="models/a", status=progressing()),
                PutStatus(key="models/b", status=progressing()),
            )


@pytest.fixture
def alone(api):
    """No rollouts of other tests, which would want the same host."""
    api.kubectl("delete", "rollouts", "--all")


@contextlib.asynccontextmanager
async def running(api, mesh, source, clock):
    """A router whose rollouts are in their objects."""
    async with (
        opened(api, clock=clock) as store,
        reconciling(
            *(lambda _: mesh, lambda _: source, store),
            settings=LoopSettings(evaluate_interval_s=0.02, evidence_interval_s=20.0),
            clock=clock,
        ) as reconciler,
    ):
        yield reconciler


async def until(reconciler, key, holds):
    with reconciler.registry.watching() as watcher:
        async with asyncio.timeout(30):
            while not holds(reconciler.registry.get(key)):
                await watcher.take()


@pytest.mark.usefixtures("alone")
async def test_a_whole_rollout_runs_on_its_object(api):
    clock = FastClock()
    mesh = TrafficRouterDouble({"vision": {"v1": 100}}, versions=("v1", "v2"), clock=clock)
    source = SyntheticSource()
    rollout = canary(name=f"rollout-{next(_numbers)}")
    name = rollout.metadata.name
    create(api, rollout)
    async with running(api, mesh, source, clock) as reconciler:
        await reconciler.apply(rollout_of(api.read(name)))
        await until(reconciler, rollout.key, lambda each: each.status.stage == 1)
    began = api.read(name)["status"]
    assert (began["phase"], began["step"]) == ("Progressing", "2/2")
    # Another process goes on.
    async with running(api, mesh, source, clock) as reconciler:
        await reconciler.apply(rollout_of(api.read(name)))
        await until(reconciler, rollout.key, lambda each: each.status.phase is Phase.PROMOTED)
        assert weights_of(mesh) == [10.0, 50.0, 100.0]
        numbers = [each.number for each in await reconciler.history(rollout.key)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert await reconciler.samples(rollout.key)
    status = api.read(name)["status"]
    assert (status["phase"], status["weight"], status["verdict"]) == ("Promoted", 100, "met")
    api.kubectl("wait", "--for=condition=Promoted", f"rollout/{name}", "--timeout=1s")


@pytest.mark.usefixtures("alone")
async def test_a_changed_spec_takes_its_turn_on_the_object(api):
    clock = FastClock()
    mesh = TrafficRouterDouble({"vision": {"v1": 100}}, versions=("v1", "v2", "v3"), clock=clock)
    rollout = fresh()
    name = rollout.metadata.name
    create(api, rollout)
    async with running(api, mesh, SyntheticSource(failures={"v3": 0.01}), clock) as reconciler:
        await reconciler.apply(rollout_of(api.read(name)))
        await until(
            *(reconciler, rollout.key),
            lambda each: each.status.desired is not None and each.status.is_settled,
        )
        await reconciler.command(rollout.key, CommandKind.PAUSE, "", None, "first")
        assert api.read(name)["status"]["lastCommand"] == {
            "id": "first",
            "accepted": True,
            "message": "",
        }
        api.kubectl("patch", "rollout", name, "--type=merge", "-p", '{"spec":{"candidate":"v3"}}')
        await reconciler.apply(rollout_of(api.read(name)))
        await until(
            reconciler,
            rollout.key,
            lambda each: each.rollout.spec.candidate == "v3" and each.status.desired is not None,
        )
        status = api.read(name)["status"]
        assert status["observedGeneration"] == 2
        assert "executing" not in status
        assert status["split"]["desired"] == "v3 10%, v1 90%"
