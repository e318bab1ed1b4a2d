"""Requests and their images."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.vision.classification import Best
from tidegate.serving.vision.engine import InputForm
from tidegate.serving.vision.tickets import Encoded, Pixels, Stages, Tensor, Ticket


def new_ticket(images, loop):
    return Ticket(images, top_k=1, client=lambda: "a", deadline_s=1e9, accepted_s=5.0, loop=loop)


def row(number):
    return np.array([number, number + 0.5], dtype=np.float32)


def best(number):
    return Best([number], [0.75])


@pytest.fixture
def ticket():
    loop = asyncio.new_event_loop()
    yield new_ticket([Encoded(b"one"), Encoded(b"three")], loop)
    loop.close()


@given(st.permutations(range(7)))
def test_results_are_rejoined_in_the_order_of_the_request(order):
    loop = asyncio.new_event_loop()
    ticket = new_ticket([Encoded(b"x")] * 7, loop)
    settled = [
        ticket.finish_task(ticket.tasks[index], row(index), best(index), batch_size=index + 1)
        for index in order
    ]
    assert settled == [False] * 6 + [True]
    ticket.deliver()
    outcome = ticket.future.result()
    assert [each.tolist() for each in outcome.rows] == [row(index).tolist() for index in range(7)]
    assert outcome.best == tuple(([index], [0.75]) for index in range(7))
    assert outcome.batch_size == 7
    assert outcome.stages == tuple(task.stages for task in ticket.tasks)
    loop.close()


ENDS = ["finish 0", "finish 1", "fail", "cancel"]


@given(st.lists(st.sampled_from(ENDS), unique=True, min_size=4, max_size=4))
def test_a_ticket_is_settled_exactly_once(order):
    loop = asyncio.new_event_loop()
    ticket = new_ticket([Encoded(b"x")] * 2, loop)
    steps = {
        "finish 0": lambda: ticket.finish_task(ticket.tasks[0], row(0), best(0), 1),
        "finish 1": lambda: ticket.finish_task(ticket.tasks[1], row(1), best(1), 1),
        "fail": lambda: ticket.fail(RuntimeError("first")),
        "cancel": ticket.cancel,
    }
    assert [steps[step]() for step in order].count(True) == 1
    assert ticket.settled
    assert all(task.abandoned for task in ticket.tasks)
    loop.close()


def test_the_first_error_is_the_one_that_is_told(ticket):
    assert ticket.fail(RuntimeError("first"))
    assert not ticket.fail(RuntimeError("second"))
    ticket.deliver()
    with pytest.raises(RuntimeError, match="first"):
        ticket.future.result()


@pytest.mark.parametrize("end", [lambda t: t.fail(RuntimeError()), lambda t: t.cancel()])
def test_a_ticket_that_is_given_up_holds_no_image(ticket, end):
    ticket.tasks[1].prepared = np.zeros((2, 2, 3), dtype=np.uint8)
    end(ticket)
    assert [(task.image, task.prepared) for task in ticket.tasks] == [(None, None)] * 2


def test_an_answer_to_a_client_that_left_is_dropped(ticket):
    ticket.future.cancel()
    ticket.fail(RuntimeError())
    ticket.deliver()
    assert ticket.future.cancelled()


def test_size_counts_every_image_as_it_was_received():
    loop = asyncio.new_event_loop()
    pixels = Pixels(np.zeros((4, 5, 3), dtype=np.uint8))
    tensor = Tensor(np.zeros((3, 2, 2), dtype=np.float32))
    ticket = new_ticket([Encoded(b"12345"), pixels, tensor], loop)
    assert ticket.size_bytes == 5 + 60 + 48
    assert [task.form for task in ticket.tasks] == [
        InputForm.PIXELS,
        InputForm.PIXELS,
        InputForm.TENSOR,
    ]
    loop.close()


def test_queue_time_is_all_waiting_and_nothing_else():
    stages = Stages(
        accepted_s=10.0, prepare_start_s=11.0, prepare_end_s=15.0, run_start_s=15.5, run_end_s=20.0
    )
    assert stages.queue_s == pytest.approx(1.5)
    assert Stages(accepted_s=10.0).queue_s == 0.0
