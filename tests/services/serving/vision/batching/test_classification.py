"""Finding the best classes in a model's output."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tidegate.serving.vision.batching.classification import find_top_classes
from tidegate.serving.vision.engines.engine import EngineOutput

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 60))
# Few different values, so that many are equal.
OUTPUTS = arrays(np.float32, SIZES, elements=st.integers(-5, 5).map(float))


def scored(rows):
    """An output whose probabilities differ from the rows but have the same order."""
    return EngineOutput(rows, (rows + 5) / 10)


@given(OUTPUTS, st.data())
def test_the_best_classes_are_those_of_a_full_sort(rows, data):
    counts = [data.draw(st.integers(1, rows.shape[1])) for _ in rows]
    output = scored(rows)
    found = find_top_classes(output, counts)
    assert len(found) == len(rows)
    for row, probabilities, count, (classes, scores) in zip(*output, counts, found, strict=True):
        expected = sorted(range(len(row)), key=lambda number: (-row[number], number))[:count]
        # Any of several equal classes at the end may be missing, but the values must be right.
        assert row[classes].tolist() == row[expected].tolist()
        assert classes == sorted(classes, key=lambda number: (-row[number], number))
        assert len(set(classes)) == count
        assert scores == probabilities[classes].tolist()


def test_classes_of_equal_probability_have_the_order_of_their_scores():
    rows = np.array([[3.0, 0.0, -200.0, -100.0]], dtype=np.float32)
    probabilities = np.array([[0.9375, 0.0625, 0.0, 0.0]], dtype=np.float32)
    (found,) = find_top_classes(EngineOutput(rows, probabilities), [4])
    assert found == ([0, 1, 3, 2], [0.9375, 0.0625, 0.0, 0.0])


def test_classes_without_a_score_are_different_classes():
    rows = np.array([[-np.inf, 3.0, -np.inf, -np.inf]], dtype=np.float32)
    (found,) = find_top_classes(EngineOutput(rows, np.array([[0, 1, 0, 0]], dtype=np.float32)), [3])
    assert found.classes[0] == 1
    assert len(set(found.classes)) == 3
    assert found.scores == [1.0, 0.0, 0.0]


def test_an_output_that_is_not_finite_still_has_best_classes():
    rows = np.array([[np.nan, 1.0, np.inf], [-np.inf, 0.0, 1.0]], dtype=np.float32)
    first, second = find_top_classes(EngineOutput(rows, rows), [2, 2])
    assert len(first.classes) == 2
    assert second.classes == [2, 1]
