"""From a model's output to its best classes.

The worker that ran a batch does this, since the event loop has better to do. After a run the caches
hold the model's weights and nothing else, so that what counts is how little code is needed: a call
of NumPy that takes a microsecond takes ten then.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.serving.vision.engines.engine import EngineOutput

__all__ = ["TopClasses", "find_top_classes"]

Row = npt.NDArray[np.float32]

# Up to so many classes, as many looks over a row are as quick as a partition of it, and need a
# fraction of the code.
_FEW = 10


class TopClasses(NamedTuple):
    """The best classes of one image.

    Attributes:
        classes: class numbers, best first; of equal ones the lower number first.
        scores: the probability of each, from 0 to 1.
    """

    classes: list[int]
    scores: list[float]


def find_top_classes(output: EngineOutput, counts: Sequence[int]) -> list[TopClasses]:
    """Finds the best classes of each image without sorting the rest.

    Args:
        output: of a run.
        counts: how many are wanted of each image, from 1 to the number of classes. One client that
            wants every class does not have those of the others sorted, too.
    """
    found = []
    # The order is that of the model's own output: of small probabilities many are equal, or zero.
    for row, probabilities, count in zip(*output, counts, strict=True):
        classes = _few(row, count) if count <= _FEW else _many(row, count)
        found.append(TopClasses(classes, [probabilities.item(number) for number in classes]))
    return found


def _few(row: Row, count: int) -> list[int]:
    """The ``count`` best classes, each found by a look over the whole row."""
    rest = row.copy()
    classes = []
    for _ in range(count):
        best = int(rest.argmax())
        classes.append(best)
        rest[best] = -math.inf
    # Where what is left is -inf itself, what was found already is found again.
    return _many(row, count) if row.item(classes[-1]) == -math.inf else classes


def _many(row: Row, count: int) -> list[int]:
    """The same for any count, by a partition of the row and a sort of what is wanted."""
    chosen = row.argpartition(-count)[-count:]
    pairs = zip(row[chosen].tolist(), chosen.tolist(), strict=True)
    return [number for _, number in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))]
