"""The loop of one rollout: look, decide, write, then act.

Each turn gathers what was seen since the last one, takes a step of the engine, writes the step, and
only then begins its action. The action, a change of traffic, runs in a task of its own, because it
may take minutes and harm must be noticed meanwhile. The engine repeats an action until its outcome
is in the status, so a crash between the write and the outcome costs nothing: the next process reads
the status and does the action again, which changes nothing if it was done.
"""

import asyncio
from collections import deque
from collections.abc import Callable
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
        self._unused: tuple[TrafficWindow, ...] = ()
        self._outcome: Outcome | None = None
        self._applying: asyncio.Task[None] | None = None
        self._written_s = around.clock()
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
        """Writes what was not worth a write of its own."""
        await self._around.store.commit(
            PutStatus(key=self.record.key, status=self.record.status)
        )

    async def _turn_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._around.settings.evaluate_interval_s
        due = loop.time() + self._first_s
        while True:
            await self._sleep_until(None if self._is_idle else due)
            now = loop.time()
            if now >= due:
                if not self._is_idle:
                    LATENESS.observe(now - due)
                due += interval_s * (1 + (now - due) // interval_s)
            try:
                await self._evaluate()
            # A fault of one rollout must not end the others.
            except Exception as error:  # noqa: BLE001 - reported in its status and in the log
                self._report(error)
            else:
                self._note_problem("")

    @property
    def _is_idle(self) -> bool:
        return (
            self.record.has_ended
            and not self._commands
            and self._applying is None
            and self._outcome is None
        )

    async def _sleep_until(self, due: float | None) -> None:
        """Sleeps until something happens, or until a time of the event loop."""
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _evaluate(self) -> None:
        EVALUATIONS.inc()
        record, around = self.record, self._around
        if record.successor is not None and record.status.phase in ENDED:
            await self._succeed(record.successor)
        began_s = around.clock()
        traffic = await self._read()
        now_s = around.clock()
        if traffic is not None:
            self._look(traffic, began_s, now_s)
        windows = self._unused
        if self._counting is not None:
            windows += await self._counting.take(now_s)
            self._unused = windows[-_MAX_UNUSED_WINDOWS:]
        # Nothing else runs from here to the claim, so two rollouts cannot begin on one host.
        blocked_by = around.hosts.other(record.key, self._host)
        command = self._next_command(blocked_by)
        outcome = self._outcome
        inputs = Inputs(
            windows=self._unused,
            traffic=traffic,
            traffic_s=began_s,
            outcome=outcome,
            applying=self._applying is not None,
            command=None if command is None else command[0],
            blocked_by=blocked_by,
        )
        before = record.status
        step = advance(record.rollout, before, inputs, now_s)
        if step.status.phase in ACTIVE:
            around.hosts.claim(record.key, self._host)
        try:
            await self._write(step, before, now_s)
        except BaseException as error:
            if before.phase not in ACTIVE:
                around.hosts.release(record.key)
            if command is not None and command[1] is not None and not command[1].done():
                command[1].set_exception(error)
            raise
        self._take(step, before, outcome)
        if command is not None and command[1] is not None and not command[1].done():
            command[1].set_result(None)
        for action in step.actions:
            self._begin(action)

    def _next_command(
        self, blocked_by: str
    ) -> tuple[Command, asyncio.Future[None] | None] | None:
        """Takes the next command that the phase allows, and refuses those before it."""
        record = self.record
        while self._commands:
            command, done = self._commands.popleft()
            if done.done():
                # Whoever asked has left before it was done.
                continue
            words = refusal(record.rollout, record.status, command.kind, blocked_by)
            if not words:
                if self._commands:
                    self._wake.set()
                return command, done
            done.set_exception(RefusedError(words))
        if record.successor is not None and not record.status.superseding:
            kind = CommandKind.SUPERSEDE
            if not refusal(record.rollout, record.status, kind, blocked_by):
                return Command(kind=kind), None
        return None

    async def _read(self) -> HostTraffic | None:
        """Reads the traffic; None, and a problem, if that fails."""
        try:
            async with asyncio.timeout(self._around.settings.read_timeout_s):
                return await self._around.traffic.read(self.record.rollout.spec.host)
        except TrafficError as error:
            self._note_problem(f"the traffic cannot be read: {error}")
        except TimeoutError:
            limit_s = self._around.settings.read_timeout_s
            self._note_problem(f"the traffic cannot be read: no answer within {limit_s:g} s")
        return None

    def _look(self, traffic: HostTraffic, began_s: float, now_s: float) -> None:
        self._host = traffic.host
        if self.record.status.phase in ACTIVE:
            self._around.hosts.claim(self.record.key, traffic.host)
            self._count().look(traffic, began_s, now_s)

    async def _write(self, step: Step, before: RolloutStatus, now_s: float) -> None:
        """Writes a step. Evidence that decides nothing is written now and then."""
        waits_s = now_s - self._written_s
        if not step.events and not step.actions:
            if waits_s < self._around.settings.evidence_interval_s or step.status == before:
                return
        elif not step.events and step.status == before:
            return
        await self._around.store.commit(
            PutStatus(key=self.record.key, status=step.status, events=step.events)
        )
        self._written_s = now_s

    def _take(self, step: Step, before: RolloutStatus, outcome: Outcome | None) -> None:
        """Lets a step count that is written."""
        self._unused = ()
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
        around, key = self._around, self.record.key
        counting = self._count()
        began_s = around.clock()
        counting.change_begins(began_s)
        around.at(FaultPoint.CHANGE_BEGUN)
        error, permanent = "", False
        applied = None
        try:
            async with asyncio.timeout(around.settings.apply_timeout_s):
                owner = "" if action.release else key
                applied = await around.traffic.apply(self._host, action.split, owner)
        except TrafficError as failure:
            error, permanent = str(failure), failure.permanent
        except TimeoutError:
            error = f"it did not come into force within {around.settings.apply_timeout_s:g} s"
        # A fault of the traffic router must not end the loop; the engine tries again.
        except Exception as failure:
            _log.exception("fault while traffic was changed", rollout=key)
            error = f"a fault of the router, see its log: {failure!r}"
        around.at(FaultPoint.SPLIT_APPLIED)
        if applied is None:
            APPLY_FAILURES.inc()
            counting.change_failed(around.clock())
            _log.warning("split not in force", rollout=key, split=str(action.split), error=error)
        else:
            APPLY_SECONDS.observe(max(0.0, applied.since_s - applied.requested_s))
            counting.change_ended(action.split, applied)
        self._outcome = Outcome(id=action.id, applied=applied, error=error, permanent=permanent)
        self._applying = None
        around.at(FaultPoint.OUTCOME_NOTED)
        self._wake.set()

    async def _succeed(self, successor: Rollout) -> None:
        """Lets the rollout that replaces this one begin."""
        record = self.record
        status = fresh_status(record.status)
        put = Put(rollout=successor, file=record.file, file_rollout=record.file_rollout)
        await self._around.store.commit(put, PutStatus(key=record.key, status=status))
        self.replaced(successor, status)

    def replaced(self, rollout: Rollout, status: RolloutStatus) -> None:
        """Lets another rollout, which is written, take this one's place; it begins afresh."""
        record = self.record
        record.rollout, record.status, record.successor = rollout, status, None
        self._host = rollout.spec.host
        self._outcome, self._unused = None, ()
        self._stop_counting()
        self._around.hosts.release(record.key)
        self._around.registry.changed(record.key)
        _log.info("rollout begins", rollout=record.key, generation=status.generation)
        self._wake.set()

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

    def _report(self, error: Exception) -> None:
        EVALUATION_FAILURES.inc()
        words = f"it could not be evaluated: {error or repr(error)}"
        if words != self.record.problem:
            _log.exception("evaluation failed", rollout=self.record.key)
        self._note_problem(words)

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
        message=event.message,
        **{"numbers": dict(event.numbers)} if event.numbers else {},
    )
