"""The limit on the requests that the server holds."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chassis.errors import ResourceExhausted
from tidegate.serving.llm.admission import Admission


@given(running=st.integers(1, 8), waiting=st.integers(0, 8))
def test_running_and_waiting_requests_are_admitted_and_not_one_more(running, waiting):
    admission = Admission(running, waiting)
    with ExitStack() as stack:
        for _ in range(running + waiting):
            stack.enter_context(admission.slots())
        with pytest.raises(ResourceExhausted) as caught, admission.slots():
            pass
        assert caught.value.reason == "QUEUE_FULL"
        assert 0 < caught.value.retry_after_s <= 30
        assert admission.load().application_utilization == (running + waiting) / running
    with admission.slots():
        assert admission.load().application_utilization == 1 / running


def test_a_slot_is_free_again_after_a_failure():
    admission = Admission(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.slots():
            raise ZeroDivisionError
    with admission.slots():
        pass


def test_each_answer_of_a_request_takes_a_slot():
    admission = Admission(2, 1)
    assert admission.capacity == 3
    with admission.slots(2):
        assert admission.load().application_utilization == 1
        with pytest.raises(ResourceExhausted), admission.slots(2):
            pass
        with admission.slots(1):
            pass
    with admission.slots(3):
        pass
