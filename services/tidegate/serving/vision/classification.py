"""From a model's output to its best classes.

This is done for a whole batch at once, by the worker that ran it, since a call of NumPy costs more
than its work on one row, and the event loop has better to do.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.serving.repository import OutputKind

__all__ = ["Best", "best_classes"]

Rows = npt.NDArray[np.float32]


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
    classes = output.shape[1]
    if count < classes:
        chosen = output.argpartition(classes - count, axis=1)[:, classes - count :]
    else:
        chosen = np.broadcast_to(np.arange(classes), output.shape)
    norms = _softmax_norms(output) if kind is OutputKind.LOGITS else [None] * len(output)
    found = []
    for row, numbers, norm in zip(output, chosen, norms, strict=True):
        pairs = sorted(
            zip(row[numbers].tolist(), numbers.tolist(), strict=True),
            key=lambda pair: (-pair[0], pair[1]),
        )
        values = [value for value, _ in pairs]
        if norm is not None:
            largest, total = norm
            values = [math.exp(value - largest) / total for value in values]
        found.append(Best([number for _, number in pairs], values))
    return found


def _softmax_norms(output: Rows) -> list[tuple[float, float]]:
    """The largest logit of each image, and the sum of the powers of e over it."""
    largest = np.maximum.reduce(output, axis=1, keepdims=True)
    totals = np.add.reduce(np.exp(output - largest), axis=1)
    return list(zip(largest[:, 0].tolist(), totals.tolist(), strict=True))
