"""What the program of a cluster's router makes of errors."""

import pytest

from tidegate.errors import TidegateError
from tidegate.router.cluster.__main__ import expected_of


def test_errors_within_groups_are_told_one_by_one():
    one, other = TidegateError("one"), TidegateError("other")
    group = BaseExceptionGroup("", [ExceptionGroup("", [one]), other])
    assert expected_of(group) == (one, other)


def test_a_fault_of_the_program_is_no_error_to_go_on_from():
    with pytest.raises(ExceptionGroup) as raised:
        expected_of(ExceptionGroup("", [TidegateError("one"), KeyError("a fault")]))
    assert [type(each) for each in raised.value.exceptions] == [KeyError]
