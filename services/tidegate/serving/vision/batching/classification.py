"""Finds the best classes in a model's output.

The worker that ran the batch does this, to keep the event loop free. After a run the CPU caches
hold the model's weights and nothing else. So the amount of code counts: a NumPy call that usually
takes a microsecond takes ten then.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.serving.vision.engines.engine import EngineOutput

__all__ = ["TopClasses", "find_top_classes"]

Row = npt.NDArray[np.float32]

# Up to this many classes, one scan of the row for each class is as quick as a partition of the row,
# and needs a fraction of the code.
_FEW = 10


class TopClasses(NamedTuple):
    """The best classes of one image.

    Attributes:
        classes: Class numbers, best first; among equals the lower number first.
        scores: The probability of each, from 0 to 1.
    """

    classes: list[int]
    scores: list[float]


def find_top_classes(output: EngineOutput, counts: Sequence[int]) -> list[TopClasses]:
    """Finds the best classes of each image without sorting the rest.

    Args:
        output: The output of a run.
        counts: How many classes to find for each image, from 1 to the number of classes. They
            differ by image, so that a request for all classes does not slow down the others.
    """
    found = []
    # Ordered by the model's own output: many small probabilities are equal, or zero.
    for row, probabilities, count in zip(*output, counts, strict=True):
        classes = _few(row, count) if count <= _FEW else _many(row, count)
        found.append(TopClasses(classes, [probabilities.item(number) for number in classes]))
    return found


def _few(row: Row, count: int) -> list[int]:
    """Finds the ``count`` best classes with one scan of the whole row for each."""
    rest = row.copy()
    classes = []
    for _ in range(count):
        best = int(rest.argmax())
        classes.append(best)
        rest[best] = -math.inf
    # If all that is left is -inf, argmax returns a class that was found before.
    return _many(row, count) if row.item(classes[-1]) == -math.inf else classes


def _many(row: Row, count: int) -> list[int]:
    """Finds any number of classes: partitions the row and sorts the best part."""
    chosen = row.argpartition(-count)[-count:]
    pairs = zip(row[chosen].tolist(), chosen.tolist(), strict=True)
    return [number for _, number in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))]
