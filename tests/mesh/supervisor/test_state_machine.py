"""The state machine of one process: examples, and rules that hold for every history."""

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidegate.mesh.supervisor.process.state_machine import (
    Action,
    Event,
    Exited,
    Kill,
    Phase,
    Probed,
    ProcessState,
    RestartPolicy,
    Start,
    Stop,
    Tick,
    advance,
)

POLICY = RestartPolicy(
    startup_timeout_s=60,
    drain_deadline_s=10,
    initial_backoff_s=1,
    max_backoff_s=8,
    stable_after_s=30,
    crash_limit=4,
    crash_window_s=100,
)


def run(*steps: tuple[Event, float], policy: RestartPolicy = POLICY):
    """Applies events in turn; returns the last state and its actions."""
    state, actions = ProcessState(), ()
    for event, now in steps:
        state, actions = advance(policy, state, event, now)
    return state, actions


def test_start_spawns_and_a_ready_probe_makes_it_serve():
    state, actions = run((Start(), 0))
    assert (state.phase, actions) == (Phase.STARTING, (Action.SPAWN,))
    state, actions = run((Start(), 0), (Probed(ready=False), 1), (Probed(ready=True), 2))
    assert (state.phase, state.serving_since, actions) == (Phase.SERVING, 2, ())


def test_readiness_that_comes_and_goes_restarts_nothing():
    serving = ((Start(), 0), (Probed(ready=True), 1))
    state, actions = run(*serving, (Probed(ready=False), 5))
    assert (state.phase, actions) == (Phase.UNHEALTHY, ())
    state, actions = run(*serving, (Probed(ready=False), 5), (Probed(ready=True), 6))
    assert (state.phase, state.serving_since, actions) == (Phase.SERVING, 1, ())


def test_crashed_process_is_restarted_after_a_backoff():
    crashed = ((Start(), 0), (Probed(ready=True), 1), (Exited("exited with status 3"), 2))
    state, actions = run(*crashed)
    assert (state.phase, state.deadline, actions) == (Phase.BACKING_OFF, 3, ())
    assert state.reason == "exited with status 3"
    state, actions = run(*crashed, (Tick(), 3))
    assert (state.phase, state.restarts, actions) == (Phase.STARTING, 1, (Action.SPAWN,))


def test_backoff_doubles_up_to_its_maximum():
    patient = RestartPolicy(initial_backoff_s=1, max_backoff_s=8, crash_limit=99)
    state, now, waits = ProcessState(), 0.0, []
    state, _ = advance(patient, state, Start(), now)
    for _ in range(6):
        state, _ = advance(patient, state, Exited(""), now)
        waits.append(state.deadline - now)
        now = state.deadline
        state, _ = advance(patient, state, Tick(), now)
    assert waits == [1, 2, 4, 8, 8, 8]


def test_backoff_starts_over_after_stable_serving():
    state, _ = run(
        *((Start(), 0), (Exited(""), 1), (Tick(), 2), (Exited(""), 3), (Tick(), 5)),
        *((Probed(ready=True), 6), (Exited(""), 6 + POLICY.stable_after_s)),
    )
    assert (state.streak, state.deadline - state.since) == (1, POLICY.initial_backoff_s)


def test_crash_loop_ends_in_failure():
    steps = [(Start(), 0.0)]
    for now in (1.0, 20.0, 40.0, 60.0):
        steps += [(Exited("exited with status 1"), now), (Tick(), now + 9)]
    state, _ = run(*steps)
    assert (state.phase, state.restarts, state.deadline) == (Phase.FAILED, 3, None)


def test_slow_start_is_stopped_and_counts_as_a_crash():
    late = ((Start(), 0), (Tick(), 60))
    state, actions = run(*late)
    assert (state.phase, actions) == (Phase.STOPPING, (Action.TERMINATE,))
    state, _ = run(*late, (Exited("exited with status 0"), 61))
    assert (state.phase, state.reason) == (Phase.BACKING_OFF, "did not serve within 60 s")


def test_stop_sends_sigterm_then_sigkill():
    asked = ((Start(), 0), (Probed(ready=True), 1), (Stop(), 5))
    state, actions = run(*asked)
    assert (state.phase, state.deadline, actions) == (Phase.STOPPING, 15, (Action.TERMINATE,))
    assert run(*asked, (Tick(), 14))[1] == ()
    assert run(*asked, (Tick(), 15))[1] == (Action.KILL,)
    state, actions = run(*asked, (Tick(), 15), (Exited("was killed by SIGKILL"), 16))
    assert (state.phase, actions) == (Phase.STOPPED, ())


def test_stop_during_backoff_is_immediate():
    state, actions = run((Start(), 0), (Exited(""), 1), (Stop(), 1.5))
    assert (state.phase, actions) == (Phase.STOPPED, ())


def test_stop_wins_over_the_stop_of_a_slow_start():
    state, _ = run((Start(), 0), (Tick(), 60), (Stop(), 61), (Exited(""), 62))
    assert state.phase is Phase.STOPPED


class AnyHistory(RuleBasedStateMachine):
    """A process, a clock and the state machine, with every event in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ProcessState()
        self.now = 0.0
        self.alive = False
        self.told_to_stop = True
        self.crashes: list[float] = []

    def step(self, event: Event) -> None:
        before = self.state
        self.state, actions = advance(POLICY, self.state, event, self.now)
        for action in actions:
            if action is Action.SPAWN:
                assert not self.alive, "a second process was started beside the first"
                assert not self.told_to_stop, "a process was started after a stop"
                self.alive = True
            else:
                assert self.alive, "a signal was sent without a process"
            if action is Action.KILL and isinstance(event, Tick):
                assert self.now >= before.since + POLICY.drain_deadline_s

    @precondition(lambda self: not self.alive)
    @rule()
    def start(self) -> None:
        self.told_to_stop = False
        self.crashes = []
        self.step(Start())

    @rule(ready=st.booleans())
    def probe(self, ready: bool) -> None:
        self.step(Probed(ready))

    @precondition(lambda self: self.alive)
    @rule()
    def exit(self) -> None:
        self.alive = False
        if not self.told_to_stop:
            self.crashes.append(self.now)
        self.step(Exited("exited with status 1"))

    @rule(kill=st.booleans())
    def stop(self, kill: bool) -> None:
        self.told_to_stop = True
        self.step(Kill() if kill else Stop())

    @rule(seconds=st.floats(0, 120))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.step(Tick())

    @rule()
    def deadline_comes(self) -> None:
        if self.state.deadline is not None:
            self.now = max(self.now, self.state.deadline)
        self.step(Tick())

    @invariant()
    def phase_says_whether_a_process_runs(self) -> None:
        assert self.state.phase.has_process == self.alive

    @invariant()
    def every_wait_has_a_deadline(self) -> None:
        if self.state.phase in (Phase.STARTING, Phase.BACKING_OFF):
            assert self.state.deadline is not None

    @invariant()
    def waits_are_within_their_bounds(self) -> None:
        if self.state.phase is Phase.BACKING_OFF:
            wait = self.state.deadline - self.state.since
            # Deadlines are sums of floats, which may round.
            assert POLICY.initial_backoff_s - 1e-9 <= wait <= POLICY.max_backoff_s + 1e-9

    @invariant()
    def process_fails_exactly_at_the_crash_limit(self) -> None:
        if self.told_to_stop or not self.crashes or self.alive:
            return
        last = self.crashes[-1]
        recent = [end for end in self.crashes if end > last - POLICY.crash_window_s]
        given_up = self.state.phase is Phase.FAILED
        assert given_up == (len(recent) >= POLICY.crash_limit)


TestAnyHistory = AnyHistory.TestCase
