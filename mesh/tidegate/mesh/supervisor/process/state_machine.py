"""The state machine of one process under supervision.

``advance`` is a pure function from the state, an event and the time to the next state and the
actions. `server_process` runs the actions. Three rules:

- A process that exits unasked is restarted with exponential backoff. When it has exited
  ``crash_limit`` times within ``crash_window_s``, it has failed for good, because faster retries do
  not help a process that cannot start.
- A process that does not serve within ``startup_timeout_s`` is stopped; this counts as a crash.
- A process that is to stop gets SIGTERM, and SIGKILL after ``drain_deadline_s``.
"""

import enum
from dataclasses import dataclass, replace

__all__ = [
    "Action",
    "Event",
    "Exited",
    "Kill",
    "Phase",
    "Probed",
    "ProcessState",
    "RestartPolicy",
    "Start",
    "Stop",
    "Tick",
    "advance",
]


class Phase(enum.StrEnum):
    """The phase of a process."""

    STOPPED = "stopped"
    STARTING = "starting"
    SERVING = "serving"
    UNHEALTHY = "unhealthy"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    FAILED = "failed"

    @property
    def has_process(self) -> bool:
        """Whether a process runs in this phase."""
        return self in _WITH_PROCESS

    @property
    def settled(self) -> bool:
        """Whether the start is over, well or badly."""
        return self in (Phase.SERVING, Phase.UNHEALTHY, Phase.FAILED, Phase.STOPPED)


_WITH_PROCESS = frozenset({Phase.STARTING, Phase.SERVING, Phase.UNHEALTHY, Phase.STOPPING})


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """The timeouts and limits of the state machine; all times in seconds.

    Attributes:
        startup_timeout_s: From start to ready.
        drain_deadline_s: From SIGTERM to SIGKILL.
        initial_backoff_s: The wait before the first restart; each further wait is twice as long.
        max_backoff_s: The longest wait before a restart.
        stable_after_s: The time of serving after which the backoff starts over.
        crash_limit: Crashes within the window after which the process has failed for good.
        crash_window_s: The window.
    """

    startup_timeout_s: float = 300.0
    drain_deadline_s: float = 35.0
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    stable_after_s: float = 60.0
    crash_limit: int = 5
    crash_window_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """The state of a process; times are of a clock that never goes back.

    Attributes:
        phase: The phase.
        since: When the phase began.
        deadline: When a `Tick` is due; ``None`` for never.
        wanted: Whether the process should run; false from the first `Stop` on.
        serving_since: When this process became ready; ``None`` if it has not.
        restarts: How often it was restarted after a crash.
        crashes: When it crashed, within the crash window.
        streak: Crashes in a row without ``stable_after_s`` of serving between them.
        reason: Why it last crashed; empty if it has not.
    """

    phase: Phase = Phase.STOPPED
    since: float = 0.0
    deadline: float | None = None
    wanted: bool = False
    serving_since: float | None = None
    restarts: int = 0
    crashes: tuple[float, ...] = ()
    streak: int = 0
    reason: str = ""


class Action(enum.Enum):
    """An action for the caller of `advance`."""

    SPAWN = enum.auto()
    TERMINATE = enum.auto()
    KILL = enum.auto()


@dataclass(frozen=True, slots=True)
class Start:
    """The process should run."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The readiness probe has a result.

    Attributes:
        ready: Whether the process is ready.
    """

    ready: bool


@dataclass(frozen=True, slots=True)
class Exited:
    """The process exited.

    Attributes:
        reason: How it exited, such as ``exited with status 1``.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The process should stop."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The process should stop at once, without draining."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Start | Probed | Exited | Stop | Kill | Tick
_Step = tuple[ProcessState, tuple[Action, ...]]


def advance(policy: RestartPolicy, state: ProcessState, event: Event, now: float) -> _Step:
    """Takes one step.

    Args:
        policy: The timeouts and limits.
        state: The state.
        event: The event. An event without a meaning in this phase changes nothing.
        now: The time in seconds, of a clock that never goes back.

    Returns:
        The next state, and the actions in order.
    """
    match event:
        case Start() if not state.phase.has_process:
            return _start(policy, ProcessState(), now)
        case Probed(ready):
            return _probed(state, ready=ready, now=now), ()
        case Exited(reason) if state.phase.has_process:
            return _exited(policy, state, reason, now), ()
        case Stop():
            return _stop(policy, state, now)
        case Kill():
            stopping, _ = _stop(policy, state, now)
            alive = stopping.phase is Phase.STOPPING
            return replace(stopping, deadline=None), (Action.KILL,) if alive else ()
        case Tick() if state.deadline is not None and now >= state.deadline:
            return _due(policy, state, now)
        case _:
            return state, ()


def _start(policy: RestartPolicy, state: ProcessState, now: float) -> _Step:
    started = replace(
        state,
        phase=Phase.STARTING,
        since=now,
        deadline=now + policy.startup_timeout_s,
        wanted=True,
        serving_since=None,
    )
    return started, (Action.SPAWN,)


def _probed(state: ProcessState, *, ready: bool, now: float) -> ProcessState:
    if ready and state.phase in (Phase.STARTING, Phase.UNHEALTHY):
        since = now if state.serving_since is None else state.serving_since
        return replace(state, phase=Phase.SERVING, since=now, deadline=None, serving_since=since)
    if not ready and state.phase is Phase.SERVING:
        return replace(state, phase=Phase.UNHEALTHY, since=now)
    return state


def _exited(policy: RestartPolicy, state: ProcessState, reason: str, now: float) -> ProcessState:
    if not state.wanted:
        return replace(state, phase=Phase.STOPPED, since=now, deadline=None)
    # A process that was stopped because it did not serve in time already has its reason.
    why = state.reason if state.phase is Phase.STOPPING else reason
    crashes = (*(time for time in state.crashes if time > now - policy.crash_window_s), now)
    stable = state.serving_since is not None and now - state.serving_since >= policy.stable_after_s
    streak = 1 if stable else state.streak + 1
    failed = replace(
        state,
        phase=Phase.FAILED,
        since=now,
        deadline=None,
        crashes=crashes,
        streak=streak,
        reason=why,
    )
    if len(crashes) >= policy.crash_limit:
        return failed
    # The exponent has a limit because the power would overflow; the longest wait comes far before.
    wait_s = min(policy.max_backoff_s, policy.initial_backoff_s * 2.0 ** min(streak - 1, 60))
    return replace(failed, phase=Phase.BACKING_OFF, deadline=now + wait_s)


def _stop(policy: RestartPolicy, state: ProcessState, now: float) -> _Step:
    match state.phase:
        case Phase.STOPPING:
            return replace(state, wanted=False), ()
        case phase if phase.has_process:
            return _stopping(policy, replace(state, wanted=False), now)
        case Phase.STOPPED:
            return replace(state, wanted=False), ()
        case _:
            return replace(state, phase=Phase.STOPPED, since=now, deadline=None, wanted=False), ()


def _stopping(policy: RestartPolicy, state: ProcessState, now: float) -> _Step:
    stopping = replace(
        state, phase=Phase.STOPPING, since=now, deadline=now + policy.drain_deadline_s
    )
    return stopping, (Action.TERMINATE,)


def _due(policy: RestartPolicy, state: ProcessState, now: float) -> _Step:
    match state.phase:
        case Phase.STARTING:
            reason = f"did not serve within {policy.startup_timeout_s:g} s"
            return _stopping(policy, replace(state, reason=reason), now)
        case Phase.BACKING_OFF:
            return _start(policy, replace(state, restarts=state.restarts + 1), now)
        case _:
            return replace(state, deadline=None), (Action.KILL,)
