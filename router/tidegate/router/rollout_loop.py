"""The loop of one rollout: look, decide, write, then act.

Each turn gathers what was seen since the last one, takes a step of the engine, writes the step, and
only then begins its action. The action, a change of traffic, runs in a task of its own, because it
may take minutes and harm must be noticed meanwhile. The engine repeats an action until its outcome
is in the status, so a crash between the write and the outcome costs nothing: the next process reads
the status and does the action again, which changes nothing if it was done.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tidegate.evidence.window import TrafficWindow
from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.commands import refusal
from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.inputs import (
    ApplySplit,
    Command,
    CommandKind,
    Inputs,
    Outcome,
    Step,
)
from tidegate.rollout.engine.status import ACTIVE, ENDED, RolloutStatus
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import HostTraffic
from tidegate.router.counting import Counting
from tidegate.router.errors import RefusedError
from tidegate.router.faults import FaultPoint, OnFaultPoint, pass_by
from tidegate.router.hosts import HostClaims
from tidegate.router.metrics import (
    APPLY_FAILURES,
    APPLY_SECONDS,
    EVALUATION_FAILURES,
    EVALUATIONS,
    LATENESS,
)
from tidegate.router.registry import Registry, RolloutRecord
from tidegate.router.sources.source import TrafficSource
from tidegate.router.store import Put, PutStatus, Store
from tidegate.runtime.logging import get_logger
from tidegate.traffic.router import TrafficError, TrafficRouter

__all__ = ["LoopSettings", "RolloutLoop", "Surroundings", "fresh_status"]

_log = get_logger(__name__)

# Windows that could not be written are kept for the next turn; these are hours of a full disk.
_MAX_UNUSED_WINDOWS: Final = 10_000
_NO_WINDOWS: Final[tuple[TrafficWindow, ...]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How the loops run; see `RouterSettings`."""

    evaluate_interval_s: float = 1.0
    evidence_interval_s: float = 10.0
    read_timeout_s: float = 5.0
    apply_timeout_s: float = 300.0
    prometheus_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the loops share.

    Attributes:
        traffic: Reads and changes traffic.
        source_of: Gives the source of a rollout's evidence.
        store: Keeps the steps.
        registry: The rollouts, for watchers.
        hosts: Which rollout has which host.
        settings: How the loops run.
        clock: Gives the time in seconds since the epoch.
        at: Called at each fault point.
    """

    traffic: TrafficRouter
    source_of: Callable[[Rollout], TrafficSource]
    store: Store
    registry: Registry
    hosts: HostClaims
    settings: LoopSettings
    clock: Callable[[], float]
    at: OnFaultPoint = pass_by


def fresh_status(earlier: RolloutStatus) -> RolloutStatus:
    """Returns the status of a rollout that replaces another: no evidence, and the history goes on.

    Args:
        earlier: The last status of the other.
    """
    return RolloutStatus(
        generation=earlier.generation + 1,
        events=earlier.events,
        desired_id=earlier.desired_id,
        in_force_id=earlier.desired_id,
    )


class RolloutLoop:
    """The loop of one rollout.

    Args:
        record: The rollout.
        around: What the loops share.
        first_s: Seconds until the first evaluation.
    """

    def __init__(self, record: RolloutRecord, around: Surroundings, first_s: float) -> None:
        self.record = record
        self._around = around
        self._first_s = first_s
        self._wake = asyncio.Event()
        self._commands: deque[tuple[Command, asyncio.Future[None]]] = deque()
        self._counting: Counting | None = None
        self._host = record.rollout.spec.host
        self._unused = _NO_WINDOWS
        self._outcome: Outcome | None = None
        self._applying: asyncio.Task[None] | None = None
        self._written_s = around.clock()
        self._is_unwritten = self._is_writing = False
        # Held by a turn, and by whoever else changes the record.
        self._turn = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        if record.status.phase in ACTIVE:
            around.hosts.claim(record.key, self._host)

    def wake(self) -> None:
        """Has the rollout evaluated at once."""
        self._wake.set()

    async def command(self, command: Command) -> None:
        """Carries out a command; returns once it is written.

        Raises:
            RefusedError: The rollout's phase does not allow it.
            StoreError: It could not be written.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commands.append((command, done))
        self._wake.set()
        await done

    async def replace_by(self, successor: Rollout, file: str, file_rollout: str) -> None:
        """Lets another rollout take this one's place, once its traffic is back at the baseline.

        Returns once that is written. If this one has ended, the other one begins.

        Args:
            successor: The other rollout, of the same key.
            file: See `Stored`.
            file_rollout: See `Stored`.

        Raises:
            StoreError: It could not be written.
        """
        async with self._turn:
            record = self.record
            put = Put(
                rollout=record.rollout,
                successor=successor,
                file=file,
                file_rollout=file_rollout,
            )
            await self._around.store.commit(put)
            record.successor, record.file, record.file_rollout = successor, file, file_rollout
            if record.status.phase in ENDED:
                await self._succeed(successor)
        self._around.registry.changed(record.key)
        self._wake.set()

    async def belong_to(self, file: str, file_rollout: str) -> None:
        """Notes which file holds the rollout.

        Args:
            file: See `Stored`.
            file_rollout: See `Stored`.

        Raises:
            StoreError: It could not be written.
        """
        async with self._turn:
            record = self.record
            put = Put(
                rollout=record.rollout,
                successor=record.successor,
                file=file,
                file_rollout=file_rollout,
            )
            await self._around.store.commit(put)
            record.file, record.file_rollout = file, file_rollout

    async def run(self) -> None:
        """Evaluates the rollout until the task is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._turn_for_ever()
        finally:
            self._stop_counting()
            self._around.hosts.release(self.record.key)
            for _, done in self._commands:
                done.cancel()

    async def flush(self) -> None:
        """Writes evidence that was not worth a write of its own. Call it when `run` has ended."""
        if self._is_unwritten and not self._is_writing:
            await self._around.store.commit(
                PutStatus(key=self.record.key, status=self.record.status)
            )

    async def _turn_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._around.settings.evaluate_interval_s
        due = loop.time() + self._first_s
        while True:
            if self._is_idle:
                await self._wake.wait()
                due = loop.time()
            else:
                await self._sleep_until(due)
            self._wake.clear()
            now = loop.time()
            if now >= due:
                LATENESS.observe(now - due)
                due += interval_s * (1 + (now - due) // interval_s)
            try:
                async with self._turn:
                    problem = await self._evaluate()
            # A fault of one rollout must not end the others.
            except Exception as error:  # noqa: BLE001 - reported in its status and in the log
                problem = self._report(error)
            self._note_problem(problem)

    @property
    def _is_idle(self) -> bool:
        return (
            self.record.has_ended
            and not self._commands
            and self._applying is None
            and self._outcome is None
        )

    async def _sleep_until(self, due: float) -> None:
        """Sleeps until something happens, or until a time of the event loop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._wake.wait()

    async def _evaluate(self) -> str:
        """Takes a step, writes it, and begins its action.

        Returns:
            Why the traffic could not be read; empty if it could.
        """
        EVALUATIONS.inc()
        record, around = self.record, self._around
        if record.successor is not None and record.status.phase in ENDED:
            await self._succeed(record.successor)
        began_s = around.clock()
        traffic, problem = await self._read()
        now_s = around.clock()
        if traffic is not None:
            self._look(traffic, began_s, now_s)
        if self._counting is not None:
            windows = await self._counting.take(now_s)
            self._unused = (*self._unused, *windows)[-_MAX_UNUSED_WINDOWS:]
        # Nothing else runs from here to the claim, so two rollouts cannot begin on one host.
        blocked_by = around.hosts.other(record.key, self._host)
        with self._next_command(blocked_by) as command:
            await self._step(
                Inputs(
                    windows=self._unused,
                    traffic=traffic,
                    traffic_s=began_s,
                    outcome=self._outcome,
                    applying=self._applying is not None,
                    command=command,
                    blocked_by=blocked_by,
                ),
                now_s,
            )
        return problem

    async def _step(self, inputs: Inputs, now_s: float) -> None:
        record, around = self.record, self._around
        before = record.status
        step = advance(record.rollout, before, inputs, now_s)
        if step.status.phase in ACTIVE:
            around.hosts.claim(record.key, self._host)
        try:
            await self._write(step, before, now_s)
        except BaseException:
            if before.phase not in ACTIVE:
                around.hosts.release(record.key)
            raise
        self._take(step, before, inputs.outcome)
        for action in step.actions:
            self._begin(action)

    @contextlib.contextmanager
    def _next_command(self, blocked_by: str) -> Iterator[Command | None]:
        """Gives the next command that the phase allows, and answers whoever asked for it."""
        command, done = self._allowed_command(blocked_by)
        if done is None:
            yield command
            return
        try:
            yield command
        except asyncio.CancelledError:
            done.cancel()
            raise
        except Exception as error:
            if not done.done():
                done.set_exception(error)
            raise
        if not done.done():
            done.set_result(None)

    def _allowed_command(
        self, blocked_by: str
    ) -> tuple[Command | None, asyncio.Future[None] | None]:
        """Takes the next command that the phase allows, and refuses those before it."""
        record = self.record
        while self._commands:
            command, done = self._commands.popleft()
            words = refusal(record.rollout, record.status, command.kind, blocked_by)
            if not words:
                if self._commands:
                    self._wake.set()
                return command, done
            if not done.done():
                done.set_exception(RefusedError(words))
        if record.successor is not None and not record.status.superseding:
            kind = CommandKind.SUPERSEDE
            if not refusal(record.rollout, record.status, kind, blocked_by):
                return Command(kind=kind), None
        return None, None

    async def _read(self) -> tuple[HostTraffic | None, str]:
        """Reads the traffic, or says why that failed."""
        limit_s = self._around.settings.read_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._around.traffic.read(self.record.rollout.spec.host), ""
        except TrafficError as error:
            return None, f"the traffic cannot be read: {error}"
        except TimeoutError:
            return None, f"the traffic cannot be read: no answer within {limit_s:g} s"

    def _look(self, traffic: HostTraffic, began_s: float, now_s: float) -> None:
        self._host = traffic.host
        if self.record.status.phase in ACTIVE:
            self._around.hosts.claim(self.record.key, traffic.host)
            self._count().look(traffic, began_s, now_s)

    async def _write(self, step: Step, before: RolloutStatus, now_s: float) -> None:
        """Writes a step. What decides nothing, such as evidence, is written now and then."""
        if not step.events:
            if step.status == before:
                return
            self._is_unwritten = True
            if now_s - self._written_s < self._around.settings.evidence_interval_s:
                return
        # If this is cancelled, nobody knows whether it was written.
        self._is_writing = True
        await self._around.store.commit(
            PutStatus(key=self.record.key, status=step.status, events=step.events)
        )
        self._is_writing = self._is_unwritten = False
        self._written_s = now_s

    def _take(self, step: Step, before: RolloutStatus, outcome: Outcome | None) -> None:
        """Lets a step count that is written."""
        self._unused = _NO_WINDOWS
        if self._outcome is outcome:
            self._outcome = None
        record = self.record
        record.status = step.status
        record.last_events.extend(step.events)
        for event in step.events:
            _log_event(record, event)
        if step.status.phase not in ACTIVE:
            self._stop_counting()
            self._around.hosts.release(record.key)
        if step.events or step.status != before:
            self._around.registry.changed(record.key)
        self._around.at(FaultPoint.STEP_TAKEN)
        if step.events and not self._is_idle:
            # One event often lets the next follow.
            self._wake.set()

    def _begin(self, action: ApplySplit) -> None:
        assert self._tasks is not None  # noqa: S101 - `run` calls it
        assert self._applying is None  # noqa: S101 - the engine waits for the outcome
        self._applying = self._tasks.create_task(self._apply(action))

    async def _apply(self, action: ApplySplit) -> None:
        try:
            self._outcome = await self._put_in_force(action)
        # A fault of the traffic router must not end the loop; the engine tries again.
        except Exception as error:  # noqa: BLE001 - it is the action's outcome
            _log.exception("fault while traffic was changed", rollout=self.record.key)
            words = f"a fault of the router, see its log: {error!r}"
            self._outcome = Outcome(id=action.id, error=words)
        if self._outcome.applied is None:
            APPLY_FAILURES.inc()
            self._count().change_failed(self._around.clock())
            _log.warning(
                "split not in force",
                rollout=self.record.key,
                split=str(action.split),
                error=self._outcome.error,
            )
        self._applying = None
        self._around.at(FaultPoint.OUTCOME_NOTED)
        self._wake.set()

    async def _put_in_force(self, action: ApplySplit) -> Outcome:
        around, counting = self._around, self._count()
        counting.change_begins(around.clock())
        around.at(FaultPoint.CHANGE_BEGUN)
        limit_s = around.settings.apply_timeout_s
        owner = "" if action.release else self.record.key
        try:
            async with asyncio.timeout(limit_s):
                applied = await around.traffic.apply(self._host, action.split, owner)
        except TrafficError as error:
            return Outcome(id=action.id, error=str(error), permanent=error.permanent)
        except TimeoutError:
            return Outcome(id=action.id, error=f"it did not come into force within {limit_s:g} s")
        around.at(FaultPoint.SPLIT_APPLIED)
        APPLY_SECONDS.observe(max(0.0, applied.since_s - applied.requested_s))
        counting.change_ended(action.split, applied)
        return Outcome(id=action.id, applied=applied)

    async def _succeed(self, successor: Rollout) -> None:
        """Lets the rollout that replaces this one begin: this one has ended."""
        record = self.record
        status = fresh_status(record.status)
        put = Put(rollout=successor, file=record.file, file_rollout=record.file_rollout)
        await self._around.store.commit(put, PutStatus(key=record.key, status=status))
        record.rollout, record.status, record.successor = successor, status, None
        self._host = successor.spec.host
        self._around.registry.changed(record.key)
        _log.info("rollout begins", rollout=record.key, generation=status.generation)

    def _count(self) -> Counting:
        if self._counting is None:
            rollout = self.record.rollout
            self._counting = Counting(
                *(self._around.source_of(rollout), rollout.key, rollout.spec, self._host),
                prometheus_url=self._around.settings.prometheus_url,
            )
        return self._counting

    def _stop_counting(self) -> None:
        if self._counting is not None:
            self._counting.end()
            self._counting = None

    def _report(self, error: Exception) -> str:
        EVALUATION_FAILURES.inc()
        words = f"it could not be evaluated: {error or repr(error)}"
        if words != self.record.problem:
            _log.exception("evaluation failed", rollout=self.record.key)
        return words

    def _note_problem(self, words: str) -> None:
        if words != self.record.problem:
            if words:
                _log.warning("problem of a rollout", rollout=self.record.key, problem=words)
            self.record.problem = words
            self._around.registry.changed(self.record.key)


def _log_event(record: RolloutRecord, event: Event) -> None:
    _log.info(
        event.kind.value,
        rollout=record.key,
        number=event.number,
        phase=record.status.phase.value,
        why=event.message,
        **{"numbers": dict(event.numbers)} if event.numbers else {},
    )
