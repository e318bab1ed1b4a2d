"""Rollouts whose traffic is on a real API server: what they do when others change it.

The evidence is synthetic, and the observer is a double; everything else is real.
"""

import asyncio
import contextlib

import pytest
import pytest_asyncio
from cluster_host import split
from cluster_objects import destination_rule, istio, rollout, to, virtual_service
from rollout_traffic import SyntheticSource

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.router.reconciler import reconciling
from tidegate.router.sqlite_store import SqliteStore
from tidegate.router.surroundings import LoopSettings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]

NAMES = {"patch": "vision", "own": "vision", "delegate": "vision-rollout"}
GIT = virtual_service(to("v2", 0), to("v1", 100))
WAIT_S = 30.0


@pytest_asyncio.fixture(loop_scope="session")
async def host(bare_host):
    delegate = {"name": "vision-rollout"}
    edge = {"hosts": ["vision.example.com"], "http": [{"delegate": delegate}]}
    await bare_host.apply(istio("VirtualService", "edge", edge))
    return bare_host


class Controller:
    """A controller of one rollout."""

    def __init__(self, host, path, mine):
        self.host, self.mine = host, mine
        self._path = path

    @contextlib.asynccontextmanager
    async def running(self):
        traffic = self.host.process()
        source = SyntheticSource()
        async with (
            SqliteStore.opened(self._path) as store,
            reconciling(
                *(traffic.of, lambda _: source, store),
                settings=LoopSettings(evaluate_interval_s=0.05, evidence_interval_s=0.0),
            ) as self.reconciler,
        ):
            yield self

    async def start(self):
        await self.reconciler.apply(self.mine)
        await self.settled_at(split(v1=90, v2=10))

    async def until(self, holds):
        with self.reconciler.registry.watching() as watcher:
            async with asyncio.timeout(WAIT_S):
                while not holds(self.reconciler.registry.get(self.mine.key)):
                    await watcher.take()
        return self.reconciler.registry.get(self.mine.key).status

    async def settled_at(self, wanted):
        return await self.until(
            lambda record: (
                record.status.desired is not None
                and record.status.desired.same_as(wanted)
                and record.status.is_settled
            )
        )

    async def happened(self, kind):
        async with asyncio.timeout(WAIT_S):
            while True:
                for each in await self.reconciler.history(self.mine.key):
                    if each.kind is kind:
                        return each
                await asyncio.sleep(0.02)

    async def command(self, kind):
        await self.reconciler.command(self.mine.key, kind, "")


@contextlib.asynccontextmanager
async def begun(host, tmp_path, write, answer="pause"):
    """A controller with a rollout at 10 %."""
    if write == "patch":
        await host.apply(destination_rule("v1", "v2"))
        await host.apply(GIT)
    mine = rollout(
        write,
        namespace=host.namespace,
        strategy={"manual": {"weights": [10, 50]}},
        onForeignChange=answer,
    )
    controller = Controller(host, tmp_path / "router.db", mine)
    async with controller.running():
        await controller.start()
        assert await host.weights(NAMES[write]) == {"v2": 10, "v1": 90}
        yield controller


async def forced_apply(host, write):
    """What Argo CD does: all fields of Git's file, with force."""
    git = virtual_service(to("v2", 0), to("v1", 100), name=NAMES[write])
    for each in git["spec"]["http"][0]["route"]:
        each["destination"]["host"] = host.name
    if write == "delegate":
        del git["spec"]["hosts"]
    await host.apply(git, manager="argocd-controller", force=True)


@pytest.mark.parametrize("write", ["patch", "own", "delegate"])
async def test_a_forced_gitops_apply_pauses_the_rollout_and_resume_writes_again(
    host, tmp_path, write
):
    async with begun(host, tmp_path, write) as controller:
        await forced_apply(host, write)
        status = await controller.until(lambda record: record.status.phase is Phase.PAUSED)
        assert status.pause_cause is PauseCause.FOREIGN_CHANGE
        assert "somebody changed the traffic" in status.message
        assert (await host.weights(NAMES[write]))["v1"] == 100
        await controller.command(CommandKind.RESUME)
        await controller.until(lambda record: record.status.phase is Phase.PROGRESSING)
        await controller.settled_at(split(v1=90, v2=10))
        assert await host.weights(NAMES[write]) == {"v2": 10, "v1": 90}
        await controller.command(CommandKind.PROMOTE_FULL)
        await controller.until(lambda record: record.status.phase is Phase.PROMOTED)
    assert await host.weights(NAMES[write]) == {"v2": 100, "v1": 0}
    assert (await host.service(NAMES[write])).metadata.annotations == {}


@pytest.mark.parametrize("write", ["patch", "delegate"])
async def test_a_forced_gitops_apply_is_undone_at_once_with_reassert(host, tmp_path, write):
    async with begun(host, tmp_path, write, "reassert") as controller:
        await forced_apply(host, write)
        event = await controller.happened(EventKind.FOREIGN_CHANGE)
        assert "the rollout puts v2 10%, v1 90% in force again" in event.message
        async with asyncio.timeout(WAIT_S):
            while await host.weights(NAMES[write]) != {"v2": 10, "v1": 90}:
                await asyncio.sleep(0.02)


async def test_a_hand_edit_is_adopted(host, tmp_path):
    async with begun(host, tmp_path, "patch", "adopt") as controller:

        def by_hand(body):
            for each, weight in zip(body["spec"]["http"][0]["route"], (25, 75), strict=True):
                each["weight"] = weight

        await host.edit(by_hand)
        await controller.happened(EventKind.ADOPTED)
        await controller.settled_at(split(v1=75, v2=25))
        assert await host.weights() == {"v2": 25, "v1": 75}
        await controller.command(CommandKind.ABORT)
        await controller.until(lambda record: record.status.phase is Phase.ABORTED)
    assert (await host.service()).spec == GIT["spec"]


@pytest.mark.parametrize("write", ["patch", "own", "delegate"])
async def test_a_deleted_virtual_service_pauses_the_rollout(host, tmp_path, write):
    async with begun(host, tmp_path, write) as controller:
        await host.delete(NAMES[write])
        status = await controller.until(lambda record: record.status.phase is Phase.PAUSED)
        assert status.pause_cause is PauseCause.FOREIGN_CHANGE
        assert await host.service(NAMES[write]) is None
        if write == "patch":
            await host.apply(GIT)
        await controller.command(CommandKind.RESUME)
        await controller.until(lambda record: record.status.phase is Phase.PROGRESSING)
        await controller.settled_at(split(v1=90, v2=10))
        assert await host.weights(NAMES[write]) == {"v2": 10, "v1": 90}


async def test_a_raise_goes_on_by_itself_once_endpoints_are_ready(host, tmp_path):
    async with begun(host, tmp_path, "own") as controller:
        await host.scale({"v1": 3, "v2": 1}, {"v2": 2})
        await controller.command(CommandKind.PROMOTE)
        status = await controller.until(lambda record: "ready endpoints" in record.status.message)
        assert "v2 has 1 of 3 ready endpoints; 50 % needs 2" in status.message
        await host.scale({"v1": 3, "v2": 2}, {"v2": 1})
        await controller.settled_at(split(v1=50, v2=50))
    assert await host.weights() == {"v2": 50, "v1": 50}


async def test_a_scaled_down_baseline_is_a_problem_of_the_rollout(host, tmp_path):
    async with begun(host, tmp_path, "own") as controller:
        await host.scale({"v1": 2, "v2": 3}, {"v1": 1})
        await controller.until(lambda record: "scale it back to 3" in record.problem)
        await host.scale({"v1": 3, "v2": 3})
        status = await controller.until(lambda record: not record.problem)
    assert status.phase is Phase.PROGRESSING


async def test_a_restarted_controller_finds_its_traffic_and_gives_it_back(host, tmp_path):
    async with begun(host, tmp_path, "patch") as controller:
        mine = controller.mine
    again = Controller(host, tmp_path / "router.db", mine)
    async with again.running():
        await again.settled_at(split(v1=90, v2=10))
        await again.command(CommandKind.ABORT)
        await again.until(lambda record: record.status.phase is Phase.ABORTED)
    assert (await host.service()).spec == GIT["spec"]
    assert (await host.service()).metadata.annotations == {}


@pytest.mark.parametrize("write", ["own", "delegate"])
async def test_what_cannot_be_done_is_refused_before_traffic_moves(host, tmp_path, write):
    mine = rollout(write, namespace=host.namespace, sticky={"header": "x-user"})
    controller = Controller(host, tmp_path / "router.db", mine)
    async with controller.running():
        await controller.reconciler.apply(mine)
        status = await controller.until(lambda record: record.status.phase is Phase.REFUSED)
    assert "--sticky-namespaces" in status.message
    assert await host.service(NAMES[write]) is None
