"""The queue in which clients take turns."""

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.vision.batching.fair_queue import (
    DEFAULT_PRIORITY,
    LOWEST_PRIORITY,
    MAX_OVERTAKES,
    FairQueue,
)

NOW_S = 10.0
_numbers = count()


@dataclass(eq=False)
class Item:
    client: str
    abandoned: bool = False
    deadline_s: float = NOW_S + 1
    priority: int = DEFAULT_PRIORITY
    number: int = field(default_factory=lambda: next(_numbers))


CLIENTS = st.sampled_from("abcd")
PRIORITIES = st.integers(1, LOWEST_PRIORITY)
ITEMS = st.builds(
    Item, client=CLIENTS, abandoned=st.booleans(), deadline_s=st.sampled_from([5.0, NOW_S, 15.0])
)
MIXED = st.builds(
    Item,
    client=CLIENTS,
    abandoned=st.booleans(),
    deadline_s=st.sampled_from([5.0, NOW_S, 15.0, 15.0]),
    priority=PRIORITIES,
)
FRESH = st.builds(Item, client=CLIENTS)


def drained(queue, now_s=NOW_S):
    handed, expired = [], []
    while True:
        item, passed_over = queue.pop(now_s)
        expired += passed_over
        if item is None:
            return handed, expired
        handed.append(item)


def filled(items):
    queue = FairQueue()
    for item in items:
        queue.push(item)
    return queue


@given(st.lists(MIXED, max_size=40))
def test_every_item_that_may_run_leaves_once_and_no_other_item_does(items):
    queue = filled(items)
    handed, expired = drained(queue)
    alive = [item for item in items if not item.abandoned]
    by_number = sorted(handed, key=lambda item: item.number)
    assert by_number == [item for item in alive if item.deadline_s > NOW_S]
    told = sorted(expired, key=lambda item: item.number)
    assert told == [item for item in alive if item.deadline_s <= NOW_S]
    assert len(queue) == 0


@given(st.lists(ITEMS, max_size=40))
def test_the_items_of_a_client_leave_in_order_of_arrival(items):
    handed, _ = drained(filled(items))
    for client in "abcd":
        numbers = [item.number for item in handed if item.client == client]
        assert numbers == sorted(numbers)


@given(st.lists(ITEMS, max_size=40), st.lists(ITEMS, max_size=20))
def test_while_two_clients_wait_neither_is_served_twice_more_than_the_other(first, later):
    queue = filled(first)
    handed = []
    for item in later:
        popped, _ = queue.pop(NOW_S)
        handed.append(popped)
        queue.push(item)
    handed += drained(queue)[0]
    handed = [item for item in handed if item is not None]
    # Count only while both clients wait: from the first push until the last item of one leaves.
    waiting = [item for item in first if item.deadline_s > NOW_S and not item.abandoned]
    for one, other in (("a", "b"), ("c", "d"), ("a", "d")):
        left = Counter(item.client for item in waiting)
        balance = 0
        for item in handed:
            if not (left[one] and left[other]):
                break
            if item in waiting and item.client in {one, other}:
                balance += 1 if item.client == one else -1
                left[item.client] -= 1
            assert abs(balance) <= 1


@given(st.lists(MIXED, max_size=60))
def test_priorities_do_not_change_the_turns_of_clients(items):
    handed, _ = drained(filled(items))
    plain, _ = drained(filled([replace(item, priority=DEFAULT_PRIORITY) for item in items]))
    assert [item.client for item in handed] == [item.client for item in plain]


def test_abandoned_and_expired_items_cost_their_client_no_turn():
    given_up = [Item("b", abandoned=True), Item("b", deadline_s=NOW_S)] * 3
    queue = filled([Item("a") for _ in range(3)] + given_up + [Item("b")])
    handed, _ = drained(queue)
    assert [item.client for item in handed] == ["a", "b", "a", "a"]


@given(st.lists(FRESH, max_size=30), st.integers(0, 10), CLIENTS, st.integers(1, 6))
def test_ahead_of_is_exact_when_the_other_clients_continue_to_send(items, popped, client, new):
    queue = filled(items)
    for _ in range(popped):
        queue.pop(NOW_S)
    foreseen = queue.ahead_of(client, new)
    mine = [Item(client) for _ in range(new)]
    for item in mine:
        queue.push(item)
    left = 1
    while (item := queue.pop(NOW_S)[0]) is not mine[-1]:
        left += 1
        if item.client != client:
            queue.push(Item(item.client))
    assert foreseen == left


@given(st.lists(MIXED, max_size=60), st.integers(0, 30), CLIENTS, st.integers(1, 40), PRIORITIES)
def test_ahead_of_is_never_too_small(items, popped, client, new, priority):
    queue = filled(items)
    for _ in range(popped):
        queue.pop(NOW_S)
    foreseen = queue.ahead_of(client, new, priority)
    mine = [Item(client, priority=priority) for _ in range(new)]
    for item in mine:
        queue.push(item)
    handed, _ = drained(queue)
    assert foreseen >= handed.index(mine[-1]) + 1


def test_an_empty_queue_returns_no_item():
    queue = FairQueue()
    assert queue.pop(NOW_S) == (None, [])
    assert queue.ahead_of("a", 3) == 3


def test_a_higher_priority_overtakes_only_items_of_its_own_client():
    queue = filled([Item("a", priority=3), Item("a"), Item("b", priority=3), Item("b", priority=3)])
    queue.push(Item("a", priority=1))
    handed, _ = drained(queue)
    assert [(item.client, item.priority) for item in handed] == [
        *(("a", 1), ("b", 3), ("a", 2), ("b", 3), ("a", 3)),
    ]


@given(st.lists(st.builds(Item, client=st.just("a"), priority=PRIORITIES), max_size=60))
def test_the_items_of_a_priority_leave_in_order_of_arrival(items):
    handed, _ = drained(filled(items))
    for priority in range(1, LOWEST_PRIORITY + 1):
        numbers = [item.number for item in handed if item.priority == priority]
        assert numbers == sorted(numbers)


def test_a_low_priority_is_not_starved_by_a_stream_of_higher_ones():
    queue = filled([Item("a", priority=3), Item("a", priority=2), Item("a", priority=1)])
    handed = []
    while len({item.priority for item in handed}) < LOWEST_PRIORITY:
        item, _ = queue.pop(NOW_S)
        handed.append(item)
        queue.push(Item("a", priority=1))
    assert [item.priority for item in handed] == [1] * MAX_OVERTAKES + [3, 2]
