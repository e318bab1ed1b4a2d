"""From a model's output to its best classes.

The worker that ran a batch does this, since the event loop has better to do. After a run the caches
hold the model's weights and nothing else, so that what counts is how little code is needed: a call
of NumPy that takes a microsecond takes ten then.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.serving.repository import OutputKind

__all__ = ["Best", "best_classes"]

Row = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float32]

# Up to so many classes, as many looks over a row are as quick as a partition of it, and need a
# fraction of the code.
_FEW = 10


class Best(NamedTuple):
    """The best classes of one image.

    Attributes:
        classes: class numbers, best first; of equal ones the lower number first.
        scores: the probability of each, from 0 to 1.
    """

    classes: list[int]
    scores: list[float]


def best_classes(output: Rows, count: int, kind: OutputKind) -> list[Best]:
    """Finds the best classes of each image without sorting the rest.

    Args:
        output: the model's output, images × classes.
        count: how many are wanted, from 1 to the number of classes.
        kind: what the numbers are; of logits, the softmax over all classes is taken.

    Returns:
        ``count`` classes for each image.
    """
    found = []
    for row in output:
        classes, values = _few(row, count) if count <= _FEW else _many(row, count)
        if kind is OutputKind.LOGITS:
            values = _softmax(values, row)
        found.append(Best(classes, values))
    return found


def _few(row: Row, count: int) -> tuple[list[int], list[float]]:
    """The classes and values of the ``count`` best, each found by a look over the whole row."""
    rest = row.copy()
    classes, values = [], []
    for _ in range(count):
        best = int(rest.argmax())
        classes.append(best)
        values.append(rest.item(best))
        rest[best] = -math.inf
    # Where what is left is -inf itself, what was found already is found again.
    return _many(row, count) if values[-1] == -math.inf else (classes, values)


def _many(row: Row, count: int) -> tuple[list[int], list[float]]:
    """The same for any count, by a partition of the row and a sort of what is wanted."""
    chosen = row.argpartition(-count)[-count:]
    pairs = sorted(
        zip(row[chosen].tolist(), chosen.tolist(), strict=True),
        key=lambda pair: (-pair[0], pair[1]),
    )
    return [number for _, number in pairs], [value for value, _ in pairs]


def _softmax(values: list[float], row: Row) -> list[float]:
    """The probabilities of some logits of a row, of which the first is the row's largest."""
    largest = values[0]
    powers = row - largest
    np.exp(powers, out=powers)
    total = float(np.add.reduce(powers))
    return [math.exp(value - largest) / total for value in values]
