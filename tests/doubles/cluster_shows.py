"""A rollout on the test cluster from its beginning to its end, under load, and what it cost."""

import asyncio
import sys
import time
from dataclasses import dataclass

from model_cluster import messages

from tidegate.kube.resources import Manifest

__all__ = ["Show", "show"]

_WAIT_S = 120.0
_INJECTED = ("fault filter abort",)


@dataclass(frozen=True)
class Show:
    """A rollout that has ended.

    Attributes:
        title: What was shown.
        way: How the rollout wrote traffic, and who called.
        seen: The Rollout.
        took_s: From its creation to its end, in seconds.
        calls: The calls that ended meanwhile.
        failed: Those that did not end with OK.
        lost: Those that failed, and not by an injected fault.
        errors: Failed calls by code and message.
        changes: How often the traffic was changed, counted at the API server.
        weights: The shares at the end.
    """

    title: str
    way: str
    seen: Manifest
    took_s: float
    calls: int
    failed: int
    lost: int
    errors: dict[str, int]
    changes: int
    weights: dict[str, int]

    @property
    def phase(self) -> str:
        return self.seen.status["phase"]

    @property
    def message(self) -> str:
        return self.seen.status["message"]

    def messages(self, kind):
        """The messages of the events of a kind."""
        return messages(self.seen, kind)

    def tell(self, capsys):
        """Prints the numbers, whatever pytest does with output."""
        in_force = self.messages("SplitInForce")
        seen = sum("seen in" in each for each in in_force)
        line = (
            f"{self.title}, {self.way}: {self.phase} after {self.took_s:.0f} s;"
            f" {self.calls} calls, {self.changes} changes of traffic, {self.lost} lost,"
            f" {self.failed - self.lost} failed by injected faults;"
            f" in force: {seen} seen, {len(in_force) - seen} assumed"
        )
        with capsys.disabled():
            sys.stdout.write(f"\n{line}\n")
            for each in self.messages("Aborting"):
                sys.stdout.write(f"    {each}\n")


async def show(
    models,
    title,
    way,
    spec,
    load,
    *,
    callers="gateway",
    warm=20,
    meanwhile=None,
    injected=_INJECTED,
    timeout_s=200.0,
):
    """Runs a rollout under load.

    Args:
        models: The cluster, whose traffic suits the way of writing.
        title: What is shown.
        way: How the rollout writes traffic.
        spec: Its spec.
        load: The context of a `SteadyLoad`, a `ChatLoad` or a `PodLoad`.
        callers: Who calls: `gateway` for those outside, `mesh` for Pods.
        warm: How many calls are answered before the rollout begins.
        meanwhile: Called with the rollout's name once it has begun; what it does is awaited.
        injected: Of what the message of a failed call has one if an injected fault failed it.
        timeout_s: How long the rollout may take, in seconds.

    Returns:
        What was seen.
    """
    name = f"{title.replace(' ', '-')}-{way}"
    with load as counts:
        async with asyncio.timeout(_WAIT_S):
            while counts.codes["OK"] < warm:
                await asyncio.sleep(0.05)
        # Calls failed while istiod had no routes to give.
        counts.clear()
        before = (await models.carrier(way)).metadata.generation
        began_s = time.monotonic()
        await models.apply(name, **{"traffic": models.traffic(way, callers), **spec})
        if meanwhile is not None:
            await meanwhile(name)
        seen = await models.follow(name, timeout_s=timeout_s)
        took_s = time.monotonic() - began_s
        # Calls after the last change count too, and a Pod tells of them a second later.
        await asyncio.sleep(2)
    after = (await models.carrier(way)).metadata.generation
    weights = await models.weights(way)
    await models.delete(name)
    codes, errors = counts.codes, dict(counts.errors)
    return Show(
        title=title,
        way=f"{way}, {callers}",
        seen=seen,
        took_s=took_s,
        calls=codes.total(),
        failed=codes.total() - codes["OK"],
        lost=sum(n for text, n in errors.items() if not any(each in text for each in injected)),
        errors=errors,
        changes=after - before,
        weights=weights,
    )
