"""What is done to the mesh while the load runs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from operating import HOST, VERSIONS, Operator, Weights, shift_request

from tidegate.istio.destination_rule import Subset
from tidegate.istio.edits import Shift, add_subset, remove_subset, shift
from tidegate.istio.shapes import HostName, SubsetName

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from witness import Witness

    from tidegate.istio import IstioObjects

__all__ = ["PHASES", "REPLICA", "SURGED", "Stage"]

REPLICA: Final = "vision-v2-too"
"""A second server of a subset; it can go without a successor beside it."""

SURGED: Final = ("vision-v2", "vision-v1")

_THIRD: Final = SubsetName("v3")
_BACK_WITHIN_S: Final = 120.0
_SEEN_WITHIN_S: Final = 30.0
# Calls that begin after one change and end before the next are what shows a wrong route.
_LONGEST_PAUSE_S: Final = 0.25
_SELDOM_S: Final = 0.5
# The supervisor gives a program up that ends ten times in two minutes.
_BETWEEN_KILLS_S: Final = 14.0
# Each fourth restart, the first included, is a plain SIGTERM to a server that is not alone.
_SIGTERM_EVERY: Final = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """What the phases play on.

    Attributes:
        operator: changes the mesh.
        witness: is asked before a controller dies.
        dice: draws weights and pauses.
    """

    operator: Operator
    witness: Witness
    dice: random.Random


async def shifts(stage: Stage, count: int) -> None:
    """Changes weights, one change right after the other."""
    for number in range(count):
        weights = _drawn(stage.dice)
        await _shift(stage, f"weight change {number + 1}", weights)
        await asyncio.sleep(stage.dice.uniform(0, _LONGEST_PAUSE_S))


async def subsets(stage: Stage, count: int) -> None:
    """Adds a subset, gives it requests, takes them away, and removes it.

    Its servers are there all the time. In every other cycle one edit of the files brings the subset
    and its weight together, and one takes both away, which is what is forbidden to do elsewhere.
    """
    operator = stage.operator
    for number in range(count):
        began_s = time.perf_counter()
        what = f"subset cycle {number + 1}"
        with_third, without = _drawn_with_third(stage.dice), {**_drawn(stage.dice), "v3": 0}
        at_once = bool(number % 2)
        if at_once:
            done = await operator.attempt(
                f"{what}: subset and weight in one edit",
                operator.edit(lambda it: _weighted(_with_third(it), with_third), with_third),  # noqa: B023 - awaited here
            )
        else:
            done = await operator.attempt(f"{what}: subset added", operator.edit(_with_third))
            done = done and await _shift(stage, f"{what}: weight", with_third)
        seen = operator.load.answered_by(VERSIONS[_THIRD], _SEEN_WITHIN_S)
        await operator.attempt(f"{what}: its first answer", seen)
        await asyncio.sleep(stage.dice.uniform(0, _LONGEST_PAUSE_S))
        if at_once:
            done &= await operator.attempt(
                f"{what}: weight and subset gone in one edit",
                operator.edit(lambda it: _without_third(_weighted(it, without)), without),  # noqa: B023
            )
        else:
            done &= await _shift(stage, f"{what}: no weight", without)
            done &= await operator.attempt(f"{what}: subset gone", operator.edit(_without_third))
        if done:
            operator.time("subset cycle", began_s)


async def control(stage: Stage, count: int) -> None:
    """Kills the control plane, every other time in the middle of a change, and changes weights."""
    for number in range(count):
        next_s = time.perf_counter() + _BETWEEN_KILLS_S
        await stage.operator.attempt(
            f"kill {number + 1} of the controller", _kill_controller(stage, number % 2 == 0)
        )
        while number + 1 < count and time.perf_counter() < next_s:
            await _shift(stage, f"a weight change after kill {number + 1}", _drawn(stage.dice))
            await asyncio.sleep(stage.dice.uniform(0, _SELDOM_S))


async def servers(stage: Stage, count: int) -> None:
    """Restarts model servers while weights change."""
    operator = stage.operator
    async with _changing_weights(stage):
        for number in range(count):
            began_s = time.perf_counter()
            if number % _SIGTERM_EVERY == 0:
                kind, change = "SIGTERM", _terminate_replica(operator)
                what = f"restart {number + 1}: SIGTERM to {REPLICA}"
            else:
                name = SURGED[number % len(SURGED)]
                kind, change = "restart", operator.laptop.tidegate("restart", name)
                what = f"restart {number + 1}: tidegate restart {name}"
            if await operator.attempt(what, change):
                operator.time(kind, began_s)


PHASES: Final = {"shifts": shifts, "subsets": subsets, "control": control, "servers": servers}
"""The phases by name, in order."""


async def _shift(stage: Stage, what: str, weights: Weights) -> bool:
    return await stage.operator.attempt(
        f"{what}: {' '.join(f'{name}={weight}' for name, weight in weights.items())}",
        stage.operator.shift(weights),
    )


async def _kill_controller(stage: Stage, in_a_change: bool) -> None:
    operator, laptop = stage.operator, stage.operator.laptop
    await stage.witness.look()
    pid = laptop.pid("controller")
    began_s = time.perf_counter()
    weights, asked = _drawn(stage.dice), None
    if in_a_change:
        asked = operator.ask(weights)
        changing = operator.mesh.Shift(shift_request(weights))
        events = aiter(changing)
        await anext(events)
        os.kill(pid, signal.SIGKILL)
        with suppress(grpc.aio.AioRpcError):
            async for _ in events:
                pass
    else:
        os.kill(pid, signal.SIGKILL)
    await laptop.started_anew("controller", pid, _BACK_WITHIN_S)
    await operator.synchronized()
    operator.time("controller back", began_s)
    if asked is not None:
        await operator.divided(weights)
        operator.acknowledge(asked)


async def _terminate_replica(operator: Operator) -> None:
    pid = operator.laptop.pid(REPLICA)
    os.kill(pid, signal.SIGTERM)
    await operator.laptop.started_anew(REPLICA, pid, _BACK_WITHIN_S)


@asynccontextmanager
async def _changing_weights(stage: Stage) -> AsyncIterator[None]:
    """Changes weights now and then."""
    enough = asyncio.Event()

    async def change() -> None:
        while not enough.is_set():
            # What goes on is told by the phase.
            doing = stage.operator.load.during
            await _shift(stage, f"{doing}; a weight change", _drawn(stage.dice))
            stage.operator.load.during = doing
            with suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), _SELDOM_S)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(change())
        try:
            yield
        finally:
            enough.set()


def _drawn(dice: random.Random) -> Weights:
    """Weights of two versions; in every other draw one of them has all."""
    first = dice.choice([0, 100, dice.randrange(1, 100), dice.randrange(1, 100)])
    return {"v1": first, "v2": 100 - first}


def _drawn_with_third(dice: random.Random) -> Weights:
    third = dice.randrange(5, 60)
    first = dice.randrange(0, 101 - third)
    return {"v1": first, "v2": 100 - third - first, "v3": third}


def _with_third(objects: IstioObjects) -> IstioObjects:
    return add_subset(objects, HostName(HOST), Subset(name=_THIRD, labels={"version": _THIRD}))


def _without_third(objects: IstioObjects) -> IstioObjects:
    return remove_subset(objects, HostName(HOST), _THIRD)


def _weighted(objects: IstioObjects, weights: Weights) -> IstioObjects:
    named = {SubsetName(name): weight for name, weight in weights.items()}
    return shift(objects, Shift(host=HOST, weights=named))
