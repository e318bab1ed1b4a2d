"""The loop of one rollout: look, decide, write, then act.

Each turn gathers what was seen since the last one, takes a step of the engine, writes the step, and
only then begins its action; `tidegate.router.writing` has the exceptions. The action, a change of
traffic, runs in a task of its own, because it may take minutes and harm must be noticed meanwhile.
The engine repeats an action until its outcome is in the status, so a crash between the write and
the outcome costs nothing: the next process reads the status and does the action again, which
changes nothing if it was done.
"""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.commands import refusal
from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.inputs import Command, CommandKind, Inputs, Step
from tidegate.rollout.engine.status import ACTIVE, ENDED, Phase, RolloutStatus
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import HostTraffic
from tidegate.router.acting import Actor
from tidegate.router.commands import UserCommand, WaitingCommands, stage_refusal
from tidegate.router.decision_spans import record_decisions
from tidegate.router.errors import LeavingError, RefusedError, StoreError, UnwrittenError
from tidegate.router.faults import FaultPoint
from tidegate.router.intake import Intake, report_fault
from tidegate.router.metrics.counters import (
    EVALUATION_FAILURES,
    EVALUATION_SECONDS,
    EVALUATIONS,
    LATENESS,
    count_events,
)
from tidegate.router.pacing import next_turn
from tidegate.router.registry import RolloutRecord
from tidegate.router.standstill import Standstill
from tidegate.router.store import Delete, Put
from tidegate.router.surroundings import Surroundings
from tidegate.router.writing import StatusWriter, counts_unwritten, with_evidence
from tidegate.runtime.logging import get_logger
from tidegate.traffic.router import TrafficError

__all__ = ["RolloutLoop", "fresh_status"]

_log = get_logger(__name__)


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
        # Held by a turn, and by whoever else changes the record.
        self._turn = asyncio.Lock()
        self._commands = WaitingCommands()
        self._actor = Actor(record, around, self._wake)
        self._intake = Intake(record, around)
        self._host = record.rollout.spec.host
        self._writer = StatusWriter(record, around)
        self._standstill = Standstill(record, around, self._intake, self._writer, self._read)
        # Why the last step, which counts, is not written.
        self._unwritten: StoreError | None = None
        if record.status.phase in ACTIVE:
            around.hosts.claim(record.key, self._host)

    def wake(self) -> None:
        """Has the rollout evaluated at once."""
        self._wake.set()

    async def command(self, command: UserCommand) -> None:
        """Carries out a command; returns once it is written.

        Raises:
            RefusedError: The rollout's phase or stage does not allow it.
            UnwrittenError: It is carried out, and could not be written yet.
            StoreError: It could not be written, and is not carried out.
        """
        done = self._commands.add(command)
        self._wake.set()
        await done

    async def replace_by(self, successor: Rollout, file: str, file_rollout: str) -> None:
        """Lets another rollout take this one's place, once its traffic is back at the baseline.

        Returns once that is written. If this one has ended, the other one begins.

        Args:
            successor: The other rollout, of the same key.
            file: See `Put`.
            file_rollout: See `Put`.

        Raises:
            StoreError: It could not be written.
        """
        async with self._turn:
            await self._put(self.record.rollout, successor, file, file_rollout)
            if self.record.status.phase in ENDED:
                await self._succeed(successor)
        self._around.registry.changed(self.record.key)
        self._wake.set()

    async def describe(self, rollout: Rollout, file: str, file_rollout: str) -> None:
        """Gives the rollout, or the one that replaces it, other metadata; nothing else changes.

        Args:
            rollout: The rollout with the new metadata, and with the same key and spec.
            file: See `Put`.
            file_rollout: See `Put`.

        Raises:
            StoreError: It could not be written.
        """
        async with self._turn:
            record = self.record
            if record.successor is None:
                await self._put(rollout, None, file, file_rollout)
            else:
                await self._put(record.rollout, rollout, file, file_rollout)
        self._around.registry.changed(record.key)

    async def belong_to(self, file: str, file_rollout: str) -> None:
        """Notes which file holds the rollout.

        Args:
            file: See `Put`.
            file_rollout: See `Put`.

        Raises:
            StoreError: It could not be written.
        """
        async with self._turn:
            await self._put(self.record.rollout, self.record.successor, file, file_rollout)

    async def delete(self) -> None:
        """Removes the rollout from the store.

        Raises:
            RefusedError: It has not ended, or a file holds it.
            StoreError: It could not be written.
        """
        async with self._turn:
            record = self.record
            if not record.has_ended:
                raise RefusedError(
                    f"{record.key} is {record.status.phase.value}; abort it first, or wait until it"
                    " has ended"
                )
            if record.file:
                raise RefusedError(f"{record.file} holds {record.key}; remove it there first")
            await self._around.store.commit(Delete(key=record.key))

    async def run(self) -> None:
        """Evaluates the rollout until the task is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._turn_for_ever(tasks)
        finally:
            self._intake.stop()
            self._around.hosts.release(self.record.key)
            self._commands.refuse_all(
                LeavingError("the router is shutting down, or the rollout is being removed")
            )

    async def flush(self) -> None:
        """Writes what was not worth a write of its own. Call it when `run` has ended."""
        await self._writer.flush()

    async def _turn_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._around.settings.evaluate_interval_s
        due = loop.time() + self._first_s
        while True:
            if self._is_idle:
                await self._wake.wait()
                due = loop.time()
            else:
                await self._sleep_until(due)
                if not self._wake.is_set() and await self._standstill.lasts():
                    due = next_turn(due, interval_s, loop.time())
                    continue
            self._standstill.forget()
            await self._around.pace.wait()
            self._wake.clear()
            now = loop.time()
            if now >= due:
                LATENESS.observe(now - due)
                due = next_turn(due, interval_s, now)
            try:
                async with self._turn:
                    with EVALUATION_SECONDS.time():
                        problem = await self._evaluate(tasks)
            except StoreError as error:
                EVALUATION_FAILURES.inc()
                problem = f"it could not be written: {error}"
            # A fault of one rollout must not end the others.
            except Exception as error:  # noqa: BLE001 - reported in its status and in the log
                problem = report_fault(self.record, "it could not be evaluated", error)
            self._note_problem(problem)

    @property
    def _is_idle(self) -> bool:
        return (
            self.record.has_ended
            and not self._commands
            and not self._writer.owes_events
            and self._actor.is_idle
        )

    async def _sleep_until(self, due: float) -> None:
        """Sleeps until something happens, or until a time of the event loop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._wake.wait()

    async def _evaluate(self, tasks: asyncio.TaskGroup) -> str:
        """Takes a step, writes it, and begins its action.

        Returns:
            Why traffic could not be read, evidence is missing, or traffic is at risk; empty if all
            is well.

        Raises:
            UnwrittenError: A command is carried out, and could not be written yet.
            StoreError: The step could not be written.
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
        await self._intake.take(now_s)
        # Nothing else runs from here to the claim, so two rollouts cannot begin on one host.
        blocked_by = around.hosts.other(record.key, self._host)

        def inputs_of(command: Command | None) -> Inputs:
            return Inputs(
                windows=self._intake.windows,
                traffic=traffic,
                traffic_problem=problem,
                traffic_s=began_s,
                outcome=self._actor.outcome,
                applying=self._actor.is_applying,
                command=command,
                blocked_by=blocked_by,
            )

        def begin(step: Step) -> None:
            for action in step.actions:
                self._actor.begin(action, self._host, self._intake.epochs(self._host), tasks)

        if self._commands and self._actor.outcome is not None:
            # A write whose answer was lost may have shown it, and users act on what they see.
            with contextlib.suppress(StoreError):
                begin(await self._step(inputs_of(None), now_s, ""))

        def refused(given: UserCommand) -> str:
            kind, observed = given.command.kind, None if traffic is None else traffic.split
            words = refusal(record.rollout, record.status, kind, blocked_by, observed)
            return words or stage_refusal(record, given.stage)

        with self._commands.next(refused) as given:
            command = None if given is None else given.command
            inputs = inputs_of(command or self._superseding(refused))
            before = record.status
            step = await self._step(inputs, now_s, "" if given is None else given.id)
            begin(step)
            if self._unwritten is not None:
                if command is None:
                    raise self._unwritten
                raise UnwrittenError(record.key, record.status.phase.value, self._unwritten)
        if self._commands or (step.events and self._begins_anew):
            self._wake.set()
        warning = "" if traffic is None else traffic.warning
        problem = problem or self._intake.problem(now_s) or warning
        self._standstill.note(before, inputs, step, problem, now_s)
        return problem

    @property
    def _begins_anew(self) -> bool:
        """Whether the rollout, or the one that replaces it, can begin now."""
        phase = self.record.status.phase
        return phase is Phase.PENDING or (self.record.successor is not None and phase in ENDED)

    async def _step(self, inputs: Inputs, now_s: float, command_id: str) -> Step:
        """Takes a step of the engine; the new status counts once it is written.

        A step that counts without that sets `_unwritten`.
        """
        record, around = self.record, self._around
        before = record.status
        step = self._advance(inputs, now_s)
        if step.status.phase in ACTIVE:
            around.hosts.claim(record.key, self._host)
        self._unwritten = None
        try:
            await self._writer.write(step, before, now_s, command_id)
        except BaseException as error:
            if not isinstance(error, StoreError) or not counts_unwritten(step):
                if before.phase not in ACTIVE:
                    around.hosts.release(record.key)
                if isinstance(error, StoreError):
                    # The windows are not looked at again: a full disk may last for days.
                    record.status = with_evidence(before, step)
                    self._intake.used()
                    around.registry.changed(record.key)
                raise
            self._writer.owe(step, command_id)
            self._unwritten = error
        record_decisions(record, step, self._intake.exemplars)
        self._intake.used()
        if self._actor.outcome is inputs.outcome:
            self._actor.outcome = None
        record.status = step.status
        record.last_events.extend(step.events)
        count_events(step.events, before.phase, step.status)
        for event in step.events:
            _log_event(record, event)
        if step.status.phase not in ACTIVE:
            self._intake.stop()
            around.hosts.release(record.key)
        if step.events or step.status != before:
            around.registry.changed(record.key)
        around.at(FaultPoint.STEP_TAKEN)
        return step

    def _advance(self, inputs: Inputs, now_s: float) -> Step:
        record = self.record
        try:
            return advance(record.rollout, record.status, inputs, now_s)
        # A fault of the evidence must keep nobody from aborting the rollout.
        except Exception as error:
            if not inputs.windows:
                raise
            self._intake.fault("the evidence cannot be judged", error)
            without = msgspec.structs.replace(inputs, windows=())
            return advance(record.rollout, record.status, without, now_s)

    def _superseding(self, refused: Callable[[UserCommand], str]) -> Command | None:
        """The command that ends a rollout which another one replaces, once it is needed."""
        command = Command(kind=CommandKind.SUPERSEDE)
        status = self.record.status
        if self.record.successor is None or status.superseding or refused(UserCommand(command)):
            return None
        return command

    async def _read(self) -> tuple[HostTraffic | None, str]:
        """Reads the traffic, or says why that failed."""
        limit_s = self._around.settings.read_timeout_s
        rollout = self.record.rollout
        traffic = self._around.traffic_of(rollout)
        try:
            async with asyncio.timeout(limit_s):
                return await traffic.read(rollout.spec.host), ""
        except TrafficError as error:
            return None, f"the traffic cannot be read: {error}"
        except TimeoutError:
            return None, f"the traffic cannot be read: no answer within {limit_s:g} s"

    def _look(self, traffic: HostTraffic, began_s: float, now_s: float) -> None:
        self._host = self.record.host = traffic.host
        if self.record.status.phase in ACTIVE:
            self._around.hosts.claim(self.record.key, traffic.host)
            self._intake.epochs(self._host).look(traffic, began_s, now_s)

    async def _put(
        self, rollout: Rollout, successor: Rollout | None, file: str, file_rollout: str
    ) -> None:
        record = self.record
        put = Put(rollout=rollout, successor=successor, file=file, file_rollout=file_rollout)
        await self._around.store.commit(put)
        record.rollout, record.successor = rollout, successor
        record.file, record.file_rollout = file, file_rollout

    async def _succeed(self, successor: Rollout) -> None:
        """Lets the rollout that replaces this one begin: this one has ended."""
        record = self.record
        status = fresh_status(record.status)
        put = Put(rollout=successor, file=record.file, file_rollout=record.file_rollout)
        await self._writer.put(put, status)
        record.rollout, record.status, record.successor = successor, status, None
        self._host = record.host = successor.spec.host
        self._around.registry.changed(record.key)
        _log.info("rollout begins", rollout=record.key, generation=status.generation)

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
