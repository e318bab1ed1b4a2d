"""Runs the loops of all rollouts, and changes which rollouts there are.

    async with (
        SqliteStore.opened(path) as store,
        reconciling(traffic_of, source_of, store) as reconciler,
    ):
        applied = await reconciler.apply(rollout)

A rollout with a changed spec takes the place of the earlier one in two steps: its traffic goes back
to the baseline, then the new one begins, without evidence. Any change of the spec counts: one rule
is easier to trust than a list of changes that keep the evidence. Other labels and annotations move
no traffic.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.inputs import Command, CommandKind
from tidegate.rollout.engine.samples import Sample
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.rollout.spec.model import Rollout
from tidegate.router.commands import UserCommand
from tidegate.router.epoch_tracking import watched_of
from tidegate.router.errors import UnknownRolloutError
from tidegate.router.faults import OnFaultPoint, pass_by
from tidegate.router.hosts import HostClaims
from tidegate.router.registry import LAST_EVENTS, Registry, RolloutRecord
from tidegate.router.rollout_loop import RolloutLoop
from tidegate.router.sources.source import TrafficSource
from tidegate.router.store import PutStatus, RolloutStore, Stored, from_json, to_json
from tidegate.router.surroundings import LoopSettings, Surroundings
from tidegate.runtime.logging import get_logger
from tidegate.traffic.router import TrafficRouter

__all__ = ["AppliedRollout", "Reconciler", "reconciling", "spread"]

_log = get_logger(__name__)

# Multiples of the golden ratio, modulo one, are spread evenly however many there are.
_GOLDEN: Final = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class AppliedRollout:
    """What came of an apply.

    Attributes:
        record: The rollout.
        changed: Whether something changed.
    """

    record: RolloutRecord
    changed: bool


@dataclass(frozen=True, slots=True)
class _Running:
    loop: RolloutLoop
    task: asyncio.Task[None]


class Reconciler:
    """All rollouts. Get one from `reconciling`.

    Args:
        around: What the loops share.
        tasks: Runs the loops.

    Attributes:
        registry: The rollouts.
    """

    def __init__(self, around: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self.registry = around.registry
        self._around = around
        self._tasks = tasks
        self._running: dict[str, _Running] = {}
        self._started = 0
        # Held while a rollout is created, replaced or removed.
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def go_on(self, records: Sequence[RolloutRecord]) -> None:
        """Goes on with the rollouts of the store."""
        for record in records:
            self._start(record)
        _log.info("rollouts loaded", rollouts=len(records))

    async def apply(self, rollout: Rollout, file: str = "") -> AppliedRollout:
        """Creates a rollout, or lets it replace the one of its name; returns once it is written.

        Args:
            rollout: The rollout.
            file: The file that it comes from; empty if it comes from a call.

        Raises:
            UnsupportedError: Its source of evidence cannot count what it asks for.
            StoreError: It could not be written.
        """
        self.check(rollout)
        text = to_json(rollout)
        # As a restart will read it, so that a later apply compares the same.
        rollout = from_json(text)
        async with self._changing[rollout.key]:
            running = self._running.get(rollout.key)
            if running is None:
                return AppliedRollout(await self._create(rollout, file, text), changed=True)
            record = running.loop.record
            if file and (file, text) == (record.file, record.file_rollout):
                # The file has not changed; a call may have changed the rollout since.
                return AppliedRollout(record, changed=False)
            # A rollout that a call changes still belongs to its file.
            belongs = (file, text) if file else (record.file, record.file_rollout)
            if not self.would_change(rollout):
                if belongs != (record.file, record.file_rollout):
                    await running.loop.belong_to(*belongs)
                return AppliedRollout(record, changed=False)
            if rollout.spec == (record.successor or record.rollout).spec:
                await running.loop.describe(rollout, *belongs)
            else:
                await running.loop.replace_by(rollout, *belongs)
            return AppliedRollout(record, changed=True)

    def check(self, rollout: Rollout) -> None:
        """Makes sure that a rollout's source of evidence can count what it asks for.

        Raises:
            UnsupportedError: It cannot; the message says what to write instead.
        """
        source, spec = self._around.source_of(rollout), rollout.spec
        source.check(watched_of(spec, spec.host, self._around.settings.prometheus_url))

    def would_change(self, rollout: Rollout) -> bool:
        """Whether to apply a rollout would change something."""
        record = self.registry.get(rollout.key)
        if record is None:
            return True
        return to_json(rollout) != to_json(record.successor or record.rollout)

    async def command(
        self,
        key: str,
        kind: CommandKind,
        reason: str,
        stage: int | None = None,
        command_id: str = "",
    ) -> RolloutRecord:
        """Carries out a user's command; returns once it is written.

        Args:
            key: The rollout's.
            kind: What to do.
            reason: Why, in the user's words.
            stage: The stage that the command is for, from 1; None if it is for any.
            command_id: See `UserCommand.id`.

        Raises:
            UnknownRolloutError: There is no such rollout.
            RefusedError: The rollout's phase or stage does not allow it, or another rollout has the
                host.
            UnwrittenError: It is carried out, and could not be written yet.
            StoreError: It could not be written, and is not carried out.
        """
        loop = self._loop(key)
        await loop.command(UserCommand(Command(kind=kind, reason=reason), stage, command_id))
        return loop.record

    async def delete(self, key: str) -> None:
        """Removes a rollout that has ended.

        Raises:
            UnknownRolloutError: There is no such rollout.
            RefusedError: It has not ended, or a file holds it.
            StoreError: It could not be written.
        """
        async with self._changing[key]:
            running = self._running.get(key)
            if running is None:
                raise UnknownRolloutError(key)
            await running.loop.delete()
            await self._stop(key, running)
            _log.info("rollout deleted", rollout=key)

    async def forget(self, key: str) -> None:
        """Stops the loop of a rollout that somebody else has removed from the store.

        Nothing is written, and traffic stays as it is. An unknown rollout is no error.
        """
        async with self._changing[key]:
            running = self._running.get(key)
            if running is not None:
                await self._stop(key, running)
                _log.info("rollout forgotten", rollout=key)

    async def left_by_file(self, key: str) -> None:
        """Notes that no file holds a rollout any more; the rollout goes on.

        Raises:
            StoreError: It could not be written.
        """
        async with self._changing[key]:
            running = self._running.get(key)
            if running is not None:
                await running.loop.belong_to("", "")

    async def history(self, key: str, after: int = 0) -> tuple[Event, ...]:
        """Returns the events of a rollout after a number.

        Raises:
            UnknownRolloutError: There is no such rollout.
            StoreError: The store is damaged.
        """
        record = self._loop(key).record
        written = await self._around.store.history(key, after)
        last = written[-1].number if written else after
        # While nothing can be written, a few events are only here.
        return (*written, *(each for each in record.last_events if each.number > last))

    async def samples(self, key: str) -> tuple[Sample, ...]:
        """Returns what the evidence about a rollout said over time.

        Raises:
            UnknownRolloutError: There is no such rollout.
            StoreError: The store is damaged.
        """
        self._loop(key)
        return await self._around.store.samples(key)

    async def flush(self) -> None:
        """Ends the loops, and writes the evidence that has not been written."""
        for each in self._running.values():
            each.task.cancel()
        if self._running:
            await asyncio.wait({each.task for each in self._running.values()})
        async with asyncio.TaskGroup() as writing:
            for each in self._running.values():
                writing.create_task(each.loop.flush())

    async def _stop(self, key: str, running: _Running) -> None:
        # The loop takes no turn before it is cancelled: nothing else has run since.
        running.task.cancel()
        del self._running[key]
        self.registry.remove(key)
        await asyncio.wait({running.task})

    async def _create(self, rollout: Rollout, file: str, text: str) -> RolloutRecord:
        stored = Stored(
            rollout=rollout, status=RolloutStatus(), file=file, file_rollout=text if file else ""
        )
        await self._around.store.commit(stored, PutStatus(key=rollout.key, status=stored.status))
        record = RolloutRecord(stored)
        self._start(record).wake()
        _log.info("rollout created", rollout=rollout.key, host=rollout.spec.host)
        return record

    def _start(self, record: RolloutRecord) -> RolloutLoop:
        self._started += 1
        interval_s = self._around.settings.evaluate_interval_s
        loop = RolloutLoop(record, self._around, spread(self._started, interval_s))
        task = self._tasks.create_task(loop.run(), name=f"rollout {record.key}")
        self._running[record.key] = _Running(loop, task)
        self.registry.add(record)
        return loop

    def _loop(self, key: str) -> RolloutLoop:
        running = self._running.get(key)
        if running is None:
            raise UnknownRolloutError(key)
        return running.loop


def spread(number: int, interval_s: float) -> float:
    """Returns when in an interval a rollout is evaluated; many of them are spread evenly.

    Args:
        number: Counts the rollouts.
        interval_s: The interval, in seconds.
    """
    return number * _GOLDEN % 1 * interval_s


@contextlib.asynccontextmanager
async def reconciling(
    traffic_of: Callable[[Rollout], TrafficRouter],
    source_of: Callable[[Rollout], TrafficSource],
    store: RolloutStore,
    settings: LoopSettings | None = None,
    clock: Callable[[], float] = time.time,
    at: OnFaultPoint = pass_by,
) -> AsyncIterator[Reconciler]:
    """Runs rollouts while the context is open, first those of the store.

    Args:
        traffic_of: Gives what reads and changes the traffic of a rollout.
        source_of: Gives the source of a rollout's evidence.
        store: Keeps the rollouts.
        settings: How the loops run.
        clock: Gives the time in seconds since the epoch.
        at: Called at each fault point.

    Raises:
        StoreError: The store is damaged.
    """
    around = Surroundings(
        traffic_of=traffic_of,
        source_of=source_of,
        store=store,
        registry=Registry(),
        hosts=HostClaims(),
        settings=settings or LoopSettings(),
        clock=clock,
        at=at,
    )
    records = await _load(store)
    async with asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(around, tasks)
        reconciler.go_on(records)
        try:
            yield reconciler
        finally:
            await reconciler.flush()


async def _load(store: RolloutStore) -> list[RolloutRecord]:
    records = []
    for stored in await store.load():
        after = max(0, stored.status.events - LAST_EVENTS)
        records.append(RolloutRecord(stored, await store.history(stored.rollout.key, after)))
    return records
