"""From scores to labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tidegate.serving.repository import OutputKind
from tidegate.serving.vision.classification import best_classes, probabilities

# Few different values, so that many are equal.
ROWS = arrays(np.float32, st.integers(1, 60), elements=st.integers(-5, 5).map(float))


@given(ROWS, st.data())
def test_the_best_classes_are_those_of_a_full_sort(row, data):
    count = data.draw(st.integers(1, len(row)))
    expected = sorted(range(len(row)), key=lambda number: (-row[number], number))[:count]
    chosen = best_classes(row, count)
    # Which of several classes at the edge is left out is open; their values are not.
    assert row[chosen].tolist() == row[expected].tolist()
    assert chosen == sorted(chosen, key=lambda number: (-row[number], number))
    assert len(set(chosen)) == count


@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(-80, 80, width=32)))
def test_logits_become_softmax(row):
    classes = list(range(len(row)))
    scores = np.array(list(probabilities(row, classes, OutputKind.LOGITS)))
    exact = np.exp(row.astype(np.float64))
    assert scores == pytest.approx(exact / exact.sum(), rel=1e-4, abs=1e-7)
    assert scores.sum() == pytest.approx(1, abs=1e-4)


def test_large_logits_do_not_overflow():
    row = np.array([1e4, -1e4, 1e4], dtype=np.float32)
    assert list(probabilities(row, [0, 1], OutputKind.LOGITS)) == [0.5, 0.0]


def test_probabilities_stay_as_they_are():
    row = np.array([0.25, 0.5, 0.25], dtype=np.float32)
    assert list(probabilities(row, [1, 0], OutputKind.PROBABILITIES)) == [0.5, 0.25]
