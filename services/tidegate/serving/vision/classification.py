"""From a row of a model's output to labels.

This is done for every image on the event loop while others wait, so it is done with as few calls of
NumPy as will do: the best classes are found without sorting the rest.
"""

import numpy as np
import numpy.typing as npt

from tidegate.serving.repository import OutputKind

__all__ = ["best_classes", "probabilities"]

Row = npt.NDArray[np.float32]


def best_classes(row: Row, count: int) -> list[int]:
    """The classes with the highest scores.

    Args:
        row: the model's output for one image, one number a class.
        count: from 1 to the number of classes.

    Returns:
        ``count`` class numbers, best first; of equal scores the lower class number first.
    """
    classes = row.shape[0]
    best = (
        row.argpartition(classes - count)[classes - count :] if count < classes else row.argsort()
    )
    pairs = zip(row[best].tolist(), best.tolist(), strict=True)
    return [number for _, number in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))]


def probabilities(row: Row, classes: list[int], kind: OutputKind) -> list[float]:
    """The probabilities of some classes.

    Args:
        row: the model's output for one image, one number a class.
        classes: the classes wanted.
        kind: what the numbers are; of logits, the softmax over all classes is taken.

    Returns:
        One number from 0 to 1 for each class wanted.
    """
    if kind is OutputKind.PROBABILITIES:
        return [float(row[number]) for number in classes]
    powers = np.exp(row - np.maximum.reduce(row))
    total = float(np.add.reduce(powers))
    return [float(powers[number]) / total for number in classes]
