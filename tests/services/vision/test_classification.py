"""From scores to labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tidegate.serving.repository import OutputKind
from tidegate.serving.vision.classification import best_classes

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 60))
# Few different values, so that many are equal.
OUTPUTS = arrays(np.float32, SIZES, elements=st.integers(-5, 5).map(float))


@given(OUTPUTS, st.sampled_from(OutputKind), st.data())
def test_the_best_classes_are_those_of_a_full_sort(output, kind, data):
    count = data.draw(st.integers(1, output.shape[1]))
    found = best_classes(output, count, kind)
    assert len(found) == len(output)
    for row, (classes, _) in zip(output, found, strict=True):
        expected = sorted(range(len(row)), key=lambda number: (-row[number], number))[:count]
        # Which of several classes at the edge is left out is open; their values are not.
        assert row[classes].tolist() == row[expected].tolist()
        assert classes == sorted(classes, key=lambda number: (-row[number], number))
        assert len(set(classes)) == count


@given(arrays(np.float32, SIZES, elements=st.floats(-80, 80, width=32)))
def test_logits_become_softmax(output):
    for row, best in zip(
        output, best_classes(output, output.shape[1], OutputKind.LOGITS), strict=True
    ):
        exact = np.exp(row.astype(np.float64))
        expected = (exact / exact.sum())[best.classes]
        assert best.scores == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert sum(best.scores) == pytest.approx(1, abs=1e-4)


def test_classes_without_a_score_are_told_apart():
    output = np.array([[-np.inf, 3.0, -np.inf, -np.inf]], dtype=np.float32)
    (found,) = best_classes(output, 3, OutputKind.LOGITS)
    assert found.classes[0] == 1
    assert len(set(found.classes)) == 3
    assert found.scores == [1.0, 0.0, 0.0]


def test_large_logits_do_not_overflow():
    output = np.array([[1e4, -1e4, 1e4]], dtype=np.float32)
    assert best_classes(output, 3, OutputKind.LOGITS) == [([0, 2, 1], [0.5, 0.5, 0.0])]


def test_probabilities_stay_as_they_are():
    output = np.array([[0.375, 0.5, 0.125]], dtype=np.float32)
    assert best_classes(output, 2, OutputKind.PROBABILITIES) == [([1, 0], [0.5, 0.375])]


def test_an_output_that_is_not_finite_is_read_all_the_same():
    output = np.array([[np.nan, 1.0, np.inf], [-np.inf, 0.0, 1.0]], dtype=np.float32)
    first, second = best_classes(output, 2, OutputKind.LOGITS)
    assert len(first.classes) == 2
    assert second.classes == [2, 1]
