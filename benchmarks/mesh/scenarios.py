"""The scenarios: what happens to the mesh while the load runs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from traffic_changes import HOST, VERSIONS, ChangeRunner, Weights, shift_request

from tidegate.istio.destination_rule import Subset
from tidegate.istio.editing.shifts import Shift, shift
from tidegate.istio.editing.subsets import add_subset, remove_subset
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.mesh.v1 import mesh_pb2

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from loss_checker import LossChecker

    from tidegate.istio import IstioObjects

__all__ = ["REPLICA", "RESTARTED", "SCENARIOS", "ScenarioContext"]

REPLICA: Final = "vision-v2-too"
"""The second server of subset `v2`; it can end before its successor serves."""

RESTARTED: Final = ("vision-v2", "vision-v1")
"""The servers that `tidegate restart` replaces; each successor serves before the old one ends."""

_OWNER: Final = "models/bench"
_THIRD: Final = SubsetName("v3")
_BACK_WITHIN_S: Final = 120.0
_SEEN_WITHIN_S: Final = 30.0
# Only calls that begin after one change and end before the next can show a wrong route.
_LONGEST_PAUSE_S: Final = 0.25
_SELDOM_S: Final = 0.5
# The supervisor gives up a program that ends ten times in two minutes.
_BETWEEN_KILLS_S: Final = 14.0
# Each fourth restart, the first included, is a plain SIGTERM to the second server of a subset.
_SIGTERM_EVERY: Final = 4


@dataclass(frozen=True, slots=True)
class ScenarioContext:
    """What every scenario works with.

    Attributes:
        runner: Changes the mesh.
        loss_checker: Collects the controller's counts before each kill.
        rng: Draws weights and pauses.
    """

    runner: ChangeRunner
    loss_checker: LossChecker
    rng: random.Random


async def shifts(context: ScenarioContext, count: int) -> None:
    """Changes weights, one change right after the other."""
    for number in range(count):
        weights = _drawn(context.rng)
        await _shift(context, f"weight change {number + 1}", weights)
        await asyncio.sleep(context.rng.uniform(0, _LONGEST_PAUSE_S))


async def splits(context: ScenarioContext, count: int) -> None:
    """Sets the whole split of the host as a rollout does, and gives the host back at the end.

    Each split has other weights; some have testers, mirrors, or stickiness by header or cookie.
    """
    for number in range(count):
        weights = _drawn(context.rng)
        split = _split(weights)
        if number % 2:
            split.testers.add(header="x-bench-tester", value=str(number), subset="v2")
            split.testers.add(cookie="bench-tester", subset="v1")
        if number % 3 == 1:
            split.mirrors.add(subset="v2", percent=1)
        if number % 4 == 1:
            split.sticky.header = "x-user-id"
        elif number % 4 == 2:
            split.sticky.cookie = "user"
        await context.runner.attempt(
            f"split {number + 1}: {weights}", context.runner.set_split(split, _OWNER)
        )
        await asyncio.sleep(context.rng.uniform(0, _LONGEST_PAUSE_S))
    back = context.runner.set_split(_split(_drawn(context.rng)), "")
    await context.runner.attempt("the host is given back", back)


async def subsets(context: ScenarioContext, count: int) -> None:
    """Adds a subset, gives it weight, takes the weight away, and removes the subset.

    Its servers run all the time. In every other cycle, one edit of the files adds the subset
    together with its weight, and one edit removes both. Istio's guides advise against such edits.
    """
    runner = context.runner
    for number in range(count):
        began_s = time.perf_counter()
        what = f"subset cycle {number + 1}"
        with_third, without = _drawn_with_third(context.rng), {**_drawn(context.rng), "v3": 0}
        in_one_edit = bool(number % 2)
        if in_one_edit:
            done = await runner.attempt(
                f"{what}: subset and weight in one edit",
                runner.edit(lambda it: _weighted(_with_third(it), with_third), with_third),  # noqa: B023 - awaited here
            )
        else:
            done = await runner.attempt(f"{what}: subset added", runner.edit(_with_third))
            done = done and await _shift(context, f"{what}: weight", with_third)
        seen = runner.load.answered_by(VERSIONS[_THIRD], _SEEN_WITHIN_S)
        await runner.attempt(f"{what}: its first answer", seen)
        await asyncio.sleep(context.rng.uniform(0, _LONGEST_PAUSE_S))
        if in_one_edit:
            done &= await runner.attempt(
                f"{what}: weight and subset removed in one edit",
                runner.edit(lambda it: _without_third(_weighted(it, without)), without),  # noqa: B023
            )
        else:
            done &= await _shift(context, f"{what}: no weight", without)
            done &= await runner.attempt(f"{what}: subset removed", runner.edit(_without_third))
        if done:
            runner.time("subset cycle", began_s)


async def control(context: ScenarioContext, count: int) -> None:
    """Kills the control plane, every other time during a shift, and changes weights in between."""
    for number in range(count):
        next_s = time.perf_counter() + _BETWEEN_KILLS_S
        await context.runner.attempt(
            f"kill {number + 1} of the controller",
            _kill_controller(context, during_shift=number % 2 == 0),
        )
        while number + 1 < count and time.perf_counter() < next_s:
            await _shift(context, f"a weight change after kill {number + 1}", _drawn(context.rng))
            await asyncio.sleep(context.rng.uniform(0, _SELDOM_S))


async def servers(context: ScenarioContext, count: int) -> None:
    """Restarts model servers while weights change."""
    runner = context.runner
    async with _changing_weights(context):
        for number in range(count):
            began_s = time.perf_counter()
            if number % _SIGTERM_EVERY == 0:
                kind, change = "SIGTERM", _terminate_replica(runner)
                what = f"restart {number + 1}: SIGTERM to {REPLICA}"
            else:
                name = RESTARTED[number % len(RESTARTED)]
                kind, change = "restart", runner.local_mesh.tidegate("restart", name)
                what = f"restart {number + 1}: tidegate restart {name}"
            if await runner.attempt(what, change):
                runner.time(kind, began_s)


SCENARIOS: Final = {
    "shifts": shifts,
    "splits": splits,
    "subsets": subsets,
    "control": control,
    "servers": servers,
}
"""The scenarios by name, in order."""


async def _shift(context: ScenarioContext, what: str, weights: Weights) -> bool:
    return await context.runner.attempt(
        f"{what}: {' '.join(f'{name}={weight}' for name, weight in weights.items())}",
        context.runner.shift(weights),
    )


async def _kill_controller(context: ScenarioContext, *, during_shift: bool) -> None:
    runner, local_mesh = context.runner, context.runner.local_mesh
    await context.loss_checker.collect()
    pid = local_mesh.pid("controller")
    began_s = time.perf_counter()
    weights, change = _drawn(context.rng), None
    if during_shift:
        change = runner.request_weights(weights)
        shift_call = runner.mesh.Shift(shift_request(weights))
        events = aiter(shift_call)
        await anext(events)
        os.kill(pid, signal.SIGKILL)
        with suppress(grpc.aio.AioRpcError):
            async for _ in events:
                pass
    else:
        os.kill(pid, signal.SIGKILL)
    await local_mesh.wait_for_restart("controller", pid, _BACK_WITHIN_S)
    await runner.wait_until_synchronized()
    runner.time("controller back", began_s)
    if change is not None:
        await runner.wait_for_weights(weights)
        runner.acknowledge(change)


async def _terminate_replica(runner: ChangeRunner) -> None:
    pid = runner.local_mesh.pid(REPLICA)
    os.kill(pid, signal.SIGTERM)
    await runner.local_mesh.wait_for_restart(REPLICA, pid, _BACK_WITHIN_S)


@asynccontextmanager
async def _changing_weights(context: ScenarioContext) -> AsyncIterator[None]:
    """Changes weights twice a second while the context is open."""
    stopping = asyncio.Event()

    async def change() -> None:
        while not stopping.is_set():
            # The shift must not replace the description of the restart that goes on beside it.
            restart = context.runner.load.during
            await _shift(context, f"{restart}; a weight change", _drawn(context.rng))
            context.runner.load.during = restart
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _SELDOM_S)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(change())
        try:
            yield
        finally:
            stopping.set()


def _drawn(rng: random.Random) -> Weights:
    """Draws weights of two versions; in half of the draws one version has all the weight."""
    first = rng.choice([0, 100, rng.randrange(1, 100), rng.randrange(1, 100)])
    return {"v1": first, "v2": 100 - first}


def _split(weights: Weights) -> mesh_pb2.TrafficSplit:
    named = (mesh_pb2.SubsetWeight(subset=name, weight=each) for name, each in weights.items())
    return mesh_pb2.TrafficSplit(weights=named)


def _drawn_with_third(rng: random.Random) -> Weights:
    third = rng.randrange(5, 60)
    first = rng.randrange(0, 101 - third)
    return {"v1": first, "v2": 100 - third - first, "v3": third}


def _with_third(objects: IstioObjects) -> IstioObjects:
    return add_subset(objects, HostName(HOST), Subset(name=_THIRD, labels={"version": _THIRD}))


def _without_third(objects: IstioObjects) -> IstioObjects:
    return remove_subset(objects, HostName(HOST), _THIRD)


def _weighted(objects: IstioObjects, weights: Weights) -> IstioObjects:
    named = {SubsetName(name): weight for name, weight in weights.items()}
    return shift(objects, Shift(host=HOST, weights=named))
