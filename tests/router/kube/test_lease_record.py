"""No two processes lead at once, whatever clocks, delays and pauses do."""

import contextlib
import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.kube.lease_record import (
    LeaseSettings,
    Move,
    Observed,
    leads_until_s,
    next_move,
    observe,
)
from tidegate.kube.resources import LeaseSpec

SETTINGS = LeaseSettings(duration_s=15, renew_deadline_s=10.0, retry_s=2.0)


def test_free_lease_is_taken_at_once():
    assert next_move(None, "a", 0.0) is Move.TAKE
    released = Observed(LeaseSpec(holder_identity="", lease_duration_seconds=1), 0.0)
    assert next_move(released, "a", 0.0) is Move.TAKE


def test_held_lease_is_waited_for_until_its_duration_has_passed_here():
    held = Observed(LeaseSpec(holder_identity="b", lease_duration_seconds=15), 100.0)
    assert next_move(held, "a", 114.9) is Move.WAIT
    assert next_move(held, "a", 115.0) is Move.TAKE


def test_unchanged_record_keeps_the_time_when_it_was_first_seen():
    spec = LeaseSpec(holder_identity="b", lease_duration_seconds=15)
    first = observe(None, spec, 1.0)
    assert observe(first, spec, 9.0) is first
    renewed = LeaseSpec(holder_identity="b", lease_duration_seconds=15, lease_transitions=1)
    assert observe(first, renewed, 9.0).seen_s == 9.0


@pytest.mark.parametrize("times", [(10, 10.0, 2.0), (15, 2.0, 2.0), (15, 10.0, 0.0)])
def test_times_that_leave_no_room_are_refused(times):
    with pytest.raises(ValueError, match="retry_s < renew_deadline_s < duration_s"):
        LeaseSettings(*times)


class Server:
    """The API server: it takes a write only if the version that the writer read is the newest."""

    def __init__(self):
        self.record = LeaseSpec()
        self.version = 0

    def write(self, holder, read_version):
        if read_version != self.version:
            return None
        self.version += 1
        self.record = LeaseSpec(
            holder_identity=holder,
            lease_duration_seconds=SETTINGS.duration_s,
            lease_transitions=self.version,
        )
        return self.record


def compete(name, offset_s, cycles, server, spans):
    """A process that competes: yields how long until its next step, and is sent the time.

    Its clock is ahead by an offset. It may be paused between any two steps, so that its writes
    arrive late, and their answers too.
    """
    observed, leads_until = None, float("-inf")
    now = yield 0.0
    for reading, pausing, sending, answering, between in cycles:
        read, read_version = server.record, server.version
        now = yield reading
        observed = observe(observed, read, now + offset_s)
        began = now + offset_s
        if began < leads_until or next_move(observed, name, began) is Move.TAKE:
            now = yield pausing + sending
            written = server.write(name, read_version)
            now = yield answering
            if written is not None:
                observed = observe(observed, written, now + offset_s)
                leads_until = leads_until_s(began, SETTINGS)
                spans.append((now, leads_until - offset_s, name))
        now = yield between


DELAYS = st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.01, 0.5, 3.0, 9.0, 20.0])
CYCLES = st.lists(
    st.tuples(DELAYS, DELAYS, DELAYS, DELAYS, st.sampled_from([0.1, 2.0, 5.0, 15.0, 16.0, 30.0])),
    min_size=3,
    max_size=25,
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), CYCLES), min_size=2, max_size=4))
def test_two_never_lead_at_once(processes):
    server, spans = Server(), []
    due = []
    for number, (offset_s, cycles) in enumerate(processes):
        process = compete(f"p{number}", offset_s, cycles, server, spans)
        heapq.heappush(due, (next(process), number, process))
    while due:
        now, number, process = heapq.heappop(due)
        with contextlib.suppress(StopIteration):
            heapq.heappush(due, (now + process.send(now), number, process))
    # A process whose answer came after its time leads for no time at all.
    led = sorted((start, end, name) for start, end, name in spans if start < end)
    for (start, end, one), (other_start, _, other) in itertools.combinations(led, 2):
        assert one == other or not start <= other_start < end - 1e-6, led
