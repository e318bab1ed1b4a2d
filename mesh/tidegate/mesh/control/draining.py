"""Waits until an endpoint that is out of use has nothing left to do."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.mesh.ads import AckOutcome, AckReport, Distribution
from tidegate.mesh.control.loads import Loads
from tidegate.mesh.resources import ProxyKind, ResourceKey

__all__ = ["Drained", "drained"]

_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Drained:
    """How taking an endpoint out of use went.

    Attributes:
        stranded: requests that still run there.
        reason: why it is not drained; empty when it is.
    """

    stranded: int
    reason: str


async def drained(
    address: str,
    places: Mapping[ProxyKind, Sequence[ResourceKey]],
    distribution: Distribution,
    loads: Loads,
    deadline_s: float,
) -> Drained:
    """Waits until every live proxy knows that an endpoint drains, and nothing runs there.

    Args:
        address: the endpoint, ``address:port``.
        places: the clusters' endpoints that it is among.
        distribution: knows who has acknowledged.
        loads: knows what runs.
        deadline_s: how long to wait.
    """
    deadline = time.monotonic() + deadline_s
    report = await distribution.acknowledged(places, deadline_s)
    since = time.monotonic()
    clusters = sorted({key.name for keys in places.values() for key in keys})
    with loads.watch(clusters):
        while True:
            counts = [loads.running(name, since, address=address) for name in clusters]
            running = sum(filter(None, counts))
            if report.done and not running and None not in counts:
                return Drained(0, "")
            if time.monotonic() >= deadline:
                return Drained(running, _why(report, counts))
            await asyncio.sleep(_LOOK_S)


def _why(report: AckReport, counts: Sequence[int | None]) -> str:
    waiting = {each.proxy.node for each in report.proxies if each.outcome is not AckOutcome.DONE}
    if waiting:
        return f"not acknowledged by {', '.join(sorted(waiting))}"
    if None in counts:
        return "some proxy has not said what runs there"
    return "requests still run there"
