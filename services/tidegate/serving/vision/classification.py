"""From a row of a model's output to labels.

This is done for every image on the event loop, so it looks at a few numbers only: the best classes
are found without sorting the rest, and the softmax is taken of them alone.
"""

import numpy as np
import numpy.typing as npt

from tidegate.serving.repository import OutputKind

__all__ = ["best_classes", "probabilities"]

Row = npt.NDArray[np.float32]


def best_classes(row: Row, count: int) -> npt.NDArray[np.intp]:
    """The classes with the highest scores.

    Args:
        row: the model's output for one image, one number a class.
        count: from 1 to the number of classes.

    Returns:
        ``count`` class numbers, best first; of equal scores the lower class number first.
    """
    classes = row.shape[0]
    best = (
        np.arange(classes) if count >= classes else np.argpartition(row, classes - count)[-count:]
    )
    ordered: npt.NDArray[np.intp] = best[np.lexsort((best, -row[best]))]
    return ordered


def probabilities(row: Row, classes: npt.NDArray[np.intp], kind: OutputKind) -> list[float]:
    """The probabilities of some classes.

    Args:
        row: the model's output for one image, one number a class.
        classes: the classes wanted.
        kind: what the numbers are; of logits, the softmax over all classes is taken.

    Returns:
        One number from 0 to 1 for each class wanted.
    """
    if kind is OutputKind.PROBABILITIES:
        chosen: list[float] = row[classes].tolist()
        return chosen
    largest = row.max()
    total = np.exp(row - largest).sum()
    softmax: list[float] = (np.exp(row[classes] - largest) / total).tolist()
    return softmax
