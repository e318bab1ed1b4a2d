"""The controller: changes the mesh as files, commands and endpoints require.

The controller makes one change of objects at a time. Other changes wait, and edits of files that
come one after another become one change. Health and workloads do not wait: they take effect at
once, in the middle of a change too.

The controller refuses an edit of a file that has errors or was rolled back. The objects stay as
they were, the file stays as the person left it, and the status says what is wrong until the file is
saved again. No command changes a file: a shift is kept apart from it (see `ShiftedFiles`).

At its start the controller finds in its journal which objects are in effect and which transition is
pending. Proxies get no answer until the endpoints have reported their health: an answer without
that would take every endpoint out of use.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from tidegate.chassis.errors import NotFound
from tidegate.errors import TidegateError
from tidegate.istio import IstioObjects
from tidegate.istio.annotations import RolloutName
from tidegate.istio.editing.shifts import Shift
from tidegate.istio.editing.splits import HostSplit
from tidegate.mesh.ads import Distribution
from tidegate.mesh.compiler import Compiler
from tidegate.mesh.control.configuration.applied import AppliedConfiguration
from tidegate.mesh.control.configuration.file_edits import FileEdits
from tidegate.mesh.control.configuration.journal import Journal, PendingTransition, TextChange
from tidegate.mesh.control.configuration.proposals import ChangeProposer, names_of
from tidegate.mesh.control.configuration.shifted_files import ShiftedFiles
from tidegate.mesh.control.endpoints.health_checks import HealthCheckTiming
from tidegate.mesh.control.endpoints.monitor import EndpointMonitor
from tidegate.mesh.control.errors import (
    InterruptedTransitionError,
    ObjectsError,
    Problems,
    StateError,
    UnexpectedChangeError,
)
from tidegate.mesh.control.served_configuration import ProposedChange, ServedConfiguration
from tidegate.mesh.control.settings import ControlSettings
from tidegate.mesh.control.transitions.drainer import (
    DrainResult,
    EndpointDrainer,
    RequestsInProgress,
)
from tidegate.mesh.control.transitions.events import TransitionEvents, in_effect
from tidegate.mesh.control.transitions.executor import Terms, TransitionExecutor
from tidegate.mesh.control.transitions.gates import StageGates
from tidegate.mesh.control.transitions.worker_sync import WorkerSync
from tidegate.mesh.resources import ProxyKind, ResourceKey
from tidegate.runtime.logging import get_logger

__all__ = ["Controller"]

_log = get_logger(__name__)

_Make = Callable[[TransitionEvents], Coroutine[Any, Any, None]]
"""Makes a change and adds its events."""


class Controller:
    """The mesh's controller. Use it from the event loop.

    Args:
        settings: The controller's settings.
        distribution: Serves the proxies.
        compiler: Compiles objects to resources.
        in_progress: Counts the requests that run in the proxies.
        journal: Keeps what must survive a restart.

    Attributes:
        served: What is served.
        endpoints: The states of the endpoints.
        transitions: Executes changes.
        problems: What is wrong and therefore not in effect.
        shifted: The files that `tidegate shift` has changed in effect.
    """

    def __init__(
        self,
        settings: ControlSettings,
        distribution: Distribution,
        compiler: Compiler,
        in_progress: RequestsInProgress,
        journal: Journal,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._applied = AppliedConfiguration()
        self._tasks: asyncio.TaskGroup | None = None
        self._changing: set[asyncio.Task[None]] = set()
        self._running = False
        self._is_back = False
        self._interrupted: _Make | None = None
        self._settled = asyncio.Event()
        self.problems = Problems()
        self._drainer = EndpointDrainer(
            distribution, in_progress, settings.leave_deadline_s, self._stranded
        )
        self.served = ServedConfiguration(distribution, compiler, self._drainer)
        self.endpoints = EndpointMonitor(
            self.served,
            settings.health_watches,
            HealthCheckTiming(
                interval_s=settings.health_check_interval_s,
                timeout_s=settings.health_check_timeout_s,
                failures=settings.health_check_failures,
            ),
        )
        gates = StageGates(
            distribution,
            self.served,
            in_progress,
            WorkerSync(
                settings.envoy_admin_files,
                lambda: {each.proxy.node for each in distribution.proxies()},
            ),
            drain_deadline_s=settings.leave_deadline_s,
            why_unhealthy=self.endpoints.why_unhealthy,
        )
        self.transitions = TransitionExecutor(distribution, self.served, journal, gates)
        self.shifted = ShiftedFiles(journal)
        self._edits = FileEdits(
            settings.objects,
            self._applied,
            self.endpoints,
            self.shifted,
            self.problems,
            self._begin_edits,
            settings.file_settle_s,
        )
        self._proposer = ChangeProposer(self._applied, self._edits, self.shifted, self.served)

    @property
    def is_running(self) -> bool:
        """Whether the controller serves proxies and makes changes."""
        return self._running

    def load(self) -> None:
        """Finds the objects that are in effect. Call it before `running`.

        Raises:
            TidegateError: The objects have errors, and there are no earlier ones to go on with.
        """
        pending = self._journal.pending()
        self._is_back = bool(pending or self._journal.applied())
        if self._is_back:
            self._interrupted = self._start_from_journal(pending)
        else:
            self._start_from_files()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves what was loaded while the context is open."""
        async with self.endpoints, asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self.endpoints.answered(self._settings.settle_s)
            self.served.open()
            following = [
                tasks.create_task(self._drainer.follow(self.served.release)),
                tasks.create_task(self._edits.follow(self._settings.file_interval_s)),
                tasks.create_task(self._settle(self._settings.settle_s if self._is_back else 0.0)),
            ]
            if self._interrupted is not None:
                self._change(self._interrupted)
            self._running = True
            try:
                yield
            finally:
                self.interrupt()
                for task in following:
                    task.cancel()

    def interrupt(self) -> None:
        """Interrupts all changes; a pending one goes on at the next start."""
        self._running = False
        for task in self._changing:
            task.cancel()

    def shift(
        self,
        change: Shift,
        description: str,
        deadline_s: float | None = None,
        *,
        force: bool = False,
    ) -> TransitionEvents:
        """Begins a shift.

        Args:
            change: The shift.
            description: The same in words.
            deadline_s: How long each of its stages may take; that of the settings unless given.
            force: Whether to shift although a rollout owns the traffic.

        Returns:
            The events. Iterating them raises an error at the end if the shift was not made.
        """
        return self._shift(
            lambda: self._proposer.propose_shift(change, force=force),
            description,
            self._terms(deadline_s),
        )

    def set_split(
        self,
        host: str,
        split: HostSplit,
        owner: RolloutName | None,
        description: str,
        deadline_s: float | None = None,
        *,
        keep: bool = False,
    ) -> TransitionEvents:
        """Begins to divide the requests of a host in a way.

        Args:
            host: The host, by its full name or its first label.
            split: The split.
            owner: The rollout that owns the split; None gives the host back.
            description: The same in words.
            deadline_s: How long each of its stages may take; that of the settings unless given.
            keep: Whether the split stays in force where it was acknowledged by the deadline. A
                split without this that runs meanwhile gives way to it.

        Returns:
            The events, as of `shift`.
        """
        return self._shift(
            lambda: self._proposer.propose_split(host, split, owner),
            description,
            self._terms(deadline_s, keep=keep, gives_way=not keep),
        )

    def reset(self, deadline_s: float | None = None, *, force: bool = False) -> TransitionEvents:
        """Begins to undo every shift: each file means again what it holds now.

        Args:
            deadline_s: How long each stage may take; that of the settings unless given.
            force: Whether to reset although a rollout owns traffic that this changes.

        Returns:
            The events, as of `shift`; none if nothing is shifted.
        """

        async def make(events: TransitionEvents) -> None:
            async with self.transitions.turn(events) as id_:
                await self._settled.wait()
                await self._edits.poll_now()
                proposed = self._proposer.propose_reset(force=force)
                if proposed.files:
                    description = f"reset of {names_of(proposed.files)}"
                    terms = self._terms(deadline_s)
                    await self._make(id_, description, proposed, events, terms)

        return self._change(make)

    def objects_of(self, host: str) -> IstioObjects:
        """The objects in effect of a host, by its full or short name; see `HostIndex`."""
        return self._applied.objects_of(host, self.served.objects)

    def propose(self, shift: Shift | None, *, force: bool) -> ProposedChange:
        """Works out what a shift would change, or what a reset would change if none is given.

        Args:
            shift: The shift.
            force: Whether a rollout may own the traffic.

        Raises:
            TidegateError: The change cannot be made.
        """
        if shift is None:
            return self._proposer.propose_reset(force=force)
        return self._proposer.propose_shift(shift, force=force)

    async def drain(self, address: str, deadline_s: float | None = None) -> DrainResult:
        """Takes an endpoint out of use and waits for the requests that run there.

        Args:
            address: The endpoint, ``address:port``.
            deadline_s: How long to wait; ``leave_deadline_s`` of the settings unless given.

        Raises:
            NotFound: There is no such endpoint.
        """
        places = self._places(address)
        self.endpoints.drain(address)
        return await self._drainer.drain(address, places, deadline_s)

    def undrain(self, address: str) -> None:
        """Takes an endpoint into use again.

        Raises:
            NotFound: There is no such endpoint.
        """
        self._places(address)
        self.endpoints.undrain(address)

    def _start_from_files(self) -> None:
        found = self._edits.differences()
        wrong = [
            *(f"{path} {words}" for path, words in self._edits.unread.items()),
            *found.broken.values(),
        ]
        if wrong:
            raise ObjectsError("\n".join(wrong))
        changes = (*found.config, *found.workloads)
        self.served.start(self._applied.edit(changes)(IstioObjects()))
        self._applied.take(changes)
        self._journal.start_with(self._applied.config)

    def _start_from_journal(self, pending: PendingTransition | None) -> _Make | None:
        """Starts with what was in effect, and with the pending transition as far as it was.

        Returns:
            Makes the rest of the pending transition.
        """
        texts = self._journal.applied()
        known = [TextChange(path, None, text, None) for path, text in texts.items()]
        try:
            self.served.start(self._applied.edit(known)(IstioObjects()))
        except TidegateError as error:
            self._start_over(error)
            return None
        self._applied.take(known)
        self._edits.take_workloads(self._edits.differences().workloads)
        if pending is None:
            return None
        try:
            change = self._proposer.propose(pending.files)
        except TidegateError as error:
            # New workloads can make the pending change impossible. Nothing has been served yet.
            self._journal.end(pending.files, made=False)
            self.problems.put(pending.description, f"was interrupted and given up: {error}")
            return None
        self.served.enter(change, pending.reached)

        async def go_on(events: TransitionEvents) -> None:
            async with self.transitions.turn(events):
                await self._settled.wait()
                await self.transitions.resume(pending, change, events)
                self._applied.take(pending.files)

        return go_on

    def _start_over(self, reason: TidegateError) -> None:
        """Starts with what the files mean, because this version rejects what was in effect."""
        self._journal.end((), made=False)
        try:
            self._start_from_files()
        except TidegateError:
            # The errors may be in a shifted text.
            for path in self.shifted.paths:
                self._journal.keep(path, None)
            self._start_from_files()
        _log.warning("starts with the files, not with what was in effect", reason=str(reason))

    async def _settle(self, seconds: float) -> None:
        """Lets proxies come back before any change: gates wait only for those connected."""
        await asyncio.sleep(seconds)
        self._settled.set()

    def _terms(
        self, deadline_s: float | None = None, *, keep: bool = False, gives_way: bool = False
    ) -> Terms:
        return Terms(deadline_s or self._settings.stage_deadline_s, keep=keep, gives_way=gives_way)

    def _shift(
        self, propose: Callable[[], ProposedChange], description: str, terms: Terms
    ) -> TransitionEvents:
        """Begins a change of the routes in effect, which is worked out when its turn has come."""

        async def make(events: TransitionEvents) -> None:
            async with self.transitions.turn(events, urgent=terms.keep) as id_:
                await self._settled.wait()
                proposed = propose()
                if not proposed.files:
                    events.add(in_effect(id_))
                    return
                await self._make(id_, description, proposed, events, terms)

        return self._change(make)

    def _change(self, make: _Make) -> TransitionEvents:
        events = TransitionEvents()

        async def run() -> None:
            try:
                await make(events)
            except TidegateError as error:
                events.end(error)
            except asyncio.CancelledError:
                events.end(
                    InterruptedTransitionError(
                        "the controller is shutting down; a change that has begun goes on at its"
                        " next start"
                    )
                )
                raise
            except Exception as error:  # noqa: BLE001 - it is logged and reported
                # One change must not end the controller.
                _log.exception("a change failed unexpectedly")
                events.end(
                    UnexpectedChangeError(f"a fault of the controller; see its log: {error!r}")
                )
            else:
                events.end()
            finally:
                self._edits.compare_again()

        assert self._tasks is not None  # noqa: S101 - changes are made while it runs
        task = self._tasks.create_task(run(), name="change")
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return events

    async def _make(
        self,
        id_: str,
        description: str,
        proposed: ProposedChange,
        events: TransitionEvents,
        terms: Terms,
    ) -> None:
        await self.transitions.execute(id_, description, proposed, events, terms)
        self._applied.take(proposed.files)

    async def _take_edits(self, events: TransitionEvents) -> None:
        """Applies edited files as one change."""
        async with self.transitions.turn(events) as id_:
            await self._settled.wait()
            # A change that ended meanwhile has changed what is in effect.
            found = await self._edits.poll_now()
            if found.broken or not found.config:
                return
            names = names_of(found.config)
            try:
                proposed = self._proposer.propose_edits(found.config)
                names = names_of(proposed.files)
                lost = ", in place of what was shifted" * self.shifted.lost_in(proposed.files)
                await self._make(id_, f"edit of {names}{lost}", proposed, events, self._terms())
            except TidegateError as error:
                if isinstance(error, StateError) or isinstance(error.__cause__, StateError):
                    # Nothing is wrong with the files: the controller tries them again.
                    self._edits.postpone(f"the edit of {names} is not in effect yet: {error}")
                else:
                    words = f"the edit of {names} is not in effect: {error}"
                    self._edits.refuse(found.config, words)
                raise

    def _begin_edits(self) -> bool:
        """Begins a change of what people have written, unless another runs."""
        if not self._running or self.transitions.busy:
            return False
        self._change(self._take_edits)
        return True

    def _stranded(self, address: str, words: str) -> None:
        self.problems.put(f"endpoint {address}", words)

    def _places(self, address: str) -> dict[ProxyKind, list[ResourceKey]]:
        places = self.served.places(address)
        if not places:
            raise NotFound(f"there is no endpoint {address}", reason="ENDPOINT_UNKNOWN")
        return places
