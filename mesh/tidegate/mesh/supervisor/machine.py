"""The life of one server process, as a pure state machine.

``advance`` takes what is so, what happened and the time, and says what is so now and what to do. It
starts nothing and waits for nothing: the shell in `process` does both. Three rules make it:

- A process that ends without being asked to is started again, later each time (exponential
  backoff), until it has ended ``crash_limit`` times within ``crash_window_s``: then it has failed
  for good, because a process that cannot start does not start by trying faster.
- A process that does not serve within ``startup_timeout_s`` is stopped and counts as ended.
- Stopping asks first, and kills what is still there after ``drain_deadline_s``.
"""

import enum
from dataclasses import dataclass, replace

__all__ = [
    "Action",
    "Event",
    "Exited",
    "HealthSeen",
    "Kill",
    "Phase",
    "RestartPolicy",
    "Start",
    "State",
    "Stop",
    "Tick",
    "advance",
]


class Phase(enum.StrEnum):
    """Where a process is in its life."""

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
        """Whether waiting for the process to serve is over, well or badly."""
        return self in (Phase.SERVING, Phase.UNHEALTHY, Phase.FAILED, Phase.STOPPED)


_WITH_PROCESS = frozenset({Phase.STARTING, Phase.SERVING, Phase.UNHEALTHY, Phase.STOPPING})


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How patient the machine is; all times in seconds.

    Attributes:
        startup_timeout_s: from being started to serving.
        drain_deadline_s: from being asked to stop to being killed.
        initial_backoff_s: the wait before the first restart; each further one is twice as long.
        max_backoff_s: the longest wait before a restart.
        stable_after_s: a process that served this long starts over with the first wait.
        crash_limit: ends within the window that make it fail for good.
        crash_window_s: the window.
    """

    startup_timeout_s: float = 300.0
    drain_deadline_s: float = 35.0
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    stable_after_s: float = 60.0
    crash_limit: int = 5
    crash_window_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is so.

    Attributes:
        phase: where the process is in its life.
        since: when the phase began.
        deadline: when a `Tick` is due; ``None`` when nothing is waited for.
        wanted: whether the process should run; untrue from the first `Stop` on.
        serving_since: when this process began to serve; ``None`` unless it has.
        restarts: how often it was started again.
        ends: when it ended unasked, within the crash window.
        streak: ends in a row without serving for long between them.
        reason: why it last ended unasked; empty unless it has.
    """

    phase: Phase = Phase.STOPPED
    since: float = 0.0
    deadline: float | None = None
    wanted: bool = False
    serving_since: float | None = None
    restarts: int = 0
    ends: tuple[float, ...] = ()
    streak: int = 0
    reason: str = ""


class Action(enum.Enum):
    """What to do."""

    SPAWN = enum.auto()
    TERMINATE = enum.auto()
    KILL = enum.auto()


@dataclass(frozen=True, slots=True)
class Start:
    """The server is wanted."""


@dataclass(frozen=True, slots=True)
class HealthSeen:
    """Its health was asked for; ``serving`` says whether it serves."""

    serving: bool


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended; ``reason`` says how."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The server is no longer wanted."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The server is no longer wanted, and nobody waits for it to finish."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Start | HealthSeen | Exited | Stop | Kill | Tick
_Step = tuple[State, tuple[Action, ...]]


def advance(policy: RestartPolicy, state: State, event: Event, now: float) -> _Step:
    """Takes one step.

    Args:
        policy: how patient to be.
        state: what is so.
        event: what happened; one that means nothing in this phase changes nothing.
        now: the time in seconds, of a clock that never goes back.

    Returns:
        What is so now, and what to do, in order.
    """
    match event:
        case Start() if not state.phase.has_process:
            return _start(policy, State(), now)
        case HealthSeen(serving):
            return _health(state, serving=serving, now=now), ()
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


def _start(policy: RestartPolicy, state: State, now: float) -> _Step:
    started = replace(
        state,
        phase=Phase.STARTING,
        since=now,
        deadline=now + policy.startup_timeout_s,
        wanted=True,
        serving_since=None,
    )
    return started, (Action.SPAWN,)


def _health(state: State, *, serving: bool, now: float) -> State:
    if serving and state.phase in (Phase.STARTING, Phase.UNHEALTHY):
        since = now if state.serving_since is None else state.serving_since
        return replace(state, phase=Phase.SERVING, since=now, deadline=None, serving_since=since)
    if not serving and state.phase is Phase.SERVING:
        return replace(state, phase=Phase.UNHEALTHY, since=now)
    return state


def _exited(policy: RestartPolicy, state: State, reason: str, now: float) -> State:
    if not state.wanted:
        return replace(state, phase=Phase.STOPPED, since=now, deadline=None)
    # A process that is stopped for not serving in time has its reason already.
    why = state.reason if state.phase is Phase.STOPPING else reason
    ends = (*(end for end in state.ends if end > now - policy.crash_window_s), now)
    stable = state.serving_since is not None and now - state.serving_since >= policy.stable_after_s
    streak = 1 if stable else state.streak + 1
    failed = replace(
        state,
        phase=Phase.FAILED,
        since=now,
        deadline=None,
        ends=ends,
        streak=streak,
        reason=why,
    )
    if len(ends) >= policy.crash_limit:
        return failed
    # Doubling is cut off where it would overflow; the longest wait is reached far before.
    wait_s = min(policy.max_backoff_s, policy.initial_backoff_s * 2.0 ** min(streak - 1, 60))
    return replace(failed, phase=Phase.BACKING_OFF, deadline=now + wait_s)


def _stop(policy: RestartPolicy, state: State, now: float) -> _Step:
    match state.phase:
        case Phase.STOPPING:
            return replace(state, wanted=False), ()
        case phase if phase.has_process:
            return _stopping(policy, replace(state, wanted=False), now)
        case Phase.STOPPED:
            return replace(state, wanted=False), ()
        case _:
            return replace(state, phase=Phase.STOPPED, since=now, deadline=None, wanted=False), ()


def _stopping(policy: RestartPolicy, state: State, now: float) -> _Step:
    stopping = replace(
        state, phase=Phase.STOPPING, since=now, deadline=now + policy.drain_deadline_s
    )
    return stopping, (Action.TERMINATE,)


def _due(policy: RestartPolicy, state: State, now: float) -> _Step:
    match state.phase:
        case Phase.STARTING:
            reason = f"did not serve within {policy.startup_timeout_s:g} s"
            return _stopping(policy, replace(state, reason=reason), now)
        case Phase.BACKING_OFF:
            return _start(policy, replace(state, restarts=state.restarts + 1), now)
        case _:
            return replace(state, deadline=None), (Action.KILL,)
