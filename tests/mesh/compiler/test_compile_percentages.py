"""Percentages: istiod cuts them off at a ten-thousandth of a percent, and so does the compiler."""

import pytest

from tidegate.mesh.compiler.protobuf import fraction


@pytest.mark.parametrize(
    ("percentage", "millionths"),
    [(0.0, 0), (100.0, 1_000_000), (33.33337, 333_333), (0.57, 5_699), (0.00009, 0)],
)
def test_a_percentage_is_cut_off(percentage, millionths):
    assert fraction(percentage).numerator == millionths
