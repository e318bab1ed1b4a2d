"""Which key a queue gives next, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.kube.backoff import Backoff
from tidegate.kube.queue_policy import Priority, QueuePolicy, QueueSettings, TokenBucket

EDIT, RESYNC = Priority.EDIT, Priority.RESYNC
SETTINGS = QueueSettings(backoff=Backoff(first_s=1.0, most_s=8.0, jitter=0.0))


@pytest.fixture
def queue():
    return QueuePolicy(SETTINGS)


def drained(queue, now_s=0.0):
    """All keys that are due, each done at once."""
    keys = []
    while (key := queue.take(now_s)) is not None:
        keys.append(key)
        queue.done(key)
    return keys


def test_adds_of_a_key_are_merged(queue):
    for _ in range(3):
        queue.add("a", EDIT)
        queue.add("a", RESYNC)
    assert drained(queue) == ["a"]


def test_key_is_given_to_one_worker_and_then_once_more(queue):
    queue.add("a", EDIT)
    assert queue.take(0.0) == "a"
    queue.add("a", EDIT)
    queue.add("a", RESYNC)
    assert queue.take(0.0) is None
    queue.done("a")
    assert drained(queue) == ["a"]


def test_edit_comes_before_a_thousand_resyncs(queue):
    for number in range(1000):
        queue.add(f"r{number}", RESYNC)
    queue.add("edited", EDIT)
    queue.add("r999", EDIT)
    assert drained(queue)[:3] == ["edited", "r999", "r0"]


def test_edits_never_starve_resyncs(queue):
    queue.add("resync", RESYNC)
    for number in range(20):
        queue.add(f"e{number}", EDIT)
    assert drained(queue).index("resync") == 8


def test_failing_key_waits_twice_as_long_each_time_up_to_a_limit(queue):
    now_s, delays = 0.0, []
    queue.add("a", EDIT)
    for _ in range(6):
        assert queue.take(now_s) == "a"
        delays.append(queue.failed("a", now_s, 0.0))
        assert queue.take(now_s + delays[-1] - 0.01) is None
        now_s += delays[-1]
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_success_forgets_failures(queue):
    queue.add("a", EDIT)
    queue.take(0.0)
    queue.failed("a", 0.0, 0.0)
    queue.take(1.0)
    queue.done("a")
    queue.add("a", EDIT)
    queue.take(2.0)
    assert queue.failed("a", 2.0, 0.0) == 1.0


def test_edit_ends_the_delay_of_a_failed_key_and_a_resync_does_not(queue):
    queue.add("a", EDIT)
    queue.take(0.0)
    queue.failed("a", 0.0, 0.0)
    queue.add("a", RESYNC)
    assert queue.take(0.5) is None
    queue.add("a", EDIT)
    assert drained(queue, 0.5) == ["a"]
    assert queue.next_due_s() is None


def test_resync_ends_the_delay_of_a_timer(queue):
    queue.add_after("a", RESYNC, 60.0)
    queue.add("a", RESYNC)
    assert drained(queue) == ["a"]
    assert drained(queue, 100.0) == []


def test_edit_while_a_key_fails_is_given_at_once(queue):
    queue.add("a", EDIT)
    queue.take(0.0)
    queue.add("a", EDIT)
    queue.failed("a", 0.0, 0.0)
    assert queue.take(0.0) == "a"


def test_earlier_of_two_times_counts(queue):
    queue.add_after("a", RESYNC, 5.0)
    queue.add_after("a", RESYNC, 3.0)
    queue.add_after("a", RESYNC, 9.0)
    assert queue.next_due_s() == 3.0
    assert drained(queue, 3.0) == ["a"]
    assert queue.next_due_s() is None


def test_retries_of_all_keys_pass_at_a_rate():
    settings = QueueSettings(
        backoff=Backoff(first_s=0.0, most_s=0.0), retries_per_s=10.0, burst=100
    )
    queue = QueuePolicy(settings)
    delays = []
    for number in range(300):
        queue.add(f"k{number}", EDIT)
        queue.take(0.0)
        delays.append(queue.failed(f"k{number}", 0.0, 0.0))
    assert delays[:100] == [0.0] * 100
    assert delays[-1] == pytest.approx(20.0)


def test_forgotten_key_does_not_come_back(queue):
    for key in ("a", "b"):
        queue.add(key, EDIT)
    queue.add_after("c", EDIT, 1.0)
    for key in ("a", "c"):
        queue.forget(key)
    assert drained(queue, 2.0) == ["b"]
    assert len(queue) == 0


def test_token_bucket_fills_up_to_its_burst():
    bucket = TokenBucket(per_s=1.0, burst=2)
    assert [bucket.takes(0.0) for _ in range(3)] == [True, True, False]
    assert [bucket.takes(100.0) for _ in range(3)] == [True, True, False]


KEYS = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.sampled_from(list(Priority))),
        st.tuples(st.just("after"), KEYS, st.floats(0.0, 20.0)),
        st.tuples(st.just("take")),
        st.tuples(st.just("done"), st.integers(0, 3)),
        st.tuples(st.just("failed"), st.integers(0, 3)),
        st.tuples(st.just("pass"), st.floats(0.0, 5.0)),
    ),
    max_size=80,
)


@given(STEPS)
def test_each_added_key_is_given_after_its_last_add_and_to_one_worker_only(steps):
    queue, now_s = QueuePolicy(SETTINGS), 0.0
    running, owed = [], set()
    for step in steps:
        match step:
            case "add", key, priority:
                queue.add(key, priority)
                owed.add(key)
            case "after", key, delay_s:
                queue.add_after(key, RESYNC, now_s + delay_s)
                owed.add(key)
            case ("take",):
                key = queue.take(now_s)
                if key is not None:
                    assert key not in running
                    assert key in owed
                    owed.discard(key)
                    running.append(key)
            case "done", index if running:
                queue.done(running.pop(index % len(running)))
            case "failed", index if running:
                key = running.pop(index % len(running))
                queue.failed(key, now_s, 0.5)
                owed.add(key)
            case "pass", seconds:
                now_s += seconds
    for key in running:
        queue.done(key)
    given_keys = set(drained(queue, now_s + 1000.0))
    assert given_keys == owed
    assert len(queue) == 0
    assert queue.next_due_s() is None
