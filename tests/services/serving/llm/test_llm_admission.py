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
            stack.enter_context(admission.slot())
        with pytest.raises(ResourceExhausted) as caught, admission.slot():
            pass
        assert caught.value.reason == "QUEUE_FULL"
        assert 0 < caught.value.retry_after_s <= 30
        assert admission.load().application_utilization == (running + waiting) / running
    with admission.slot():
        assert admission.load().application_utilization == 1 / running


def test_a_slot_is_free_again_after_a_failure():
    admission = Admission(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.slot():
            raise ZeroDivisionError
    with admission.slot():
        pass
