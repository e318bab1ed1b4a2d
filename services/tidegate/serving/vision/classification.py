"""From a model's output to labels."""

import numpy as np
import numpy.typing as npt

from tidegate.serving.repository import OutputKind

__all__ = ["probabilities", "top"]


def probabilities(output: npt.NDArray[np.float32], kind: OutputKind) -> npt.NDArray[np.float32]:
    """The probability of each class.

    Args:
        output: images × classes.
        kind: what the numbers are.

    Returns:
        images × classes, each row summing to 1 (softmax of logits; probabilities as they are).
    """
    if kind is OutputKind.PROBABILITIES:
        return output
    shifted = np.exp(output - output.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)


def top(
    scores: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The best classes of each image.

    Args:
        scores: images × classes.
        count: from 1 to the number of classes.

    Returns:
        Class numbers and scores, both images × count, best first; equal scores in class order.
    """
    classes = scores.shape[1]
    if count < classes:
        best = np.sort(
            np.argpartition(scores, classes - count, axis=1)[:, classes - count :], axis=1
        )
    else:
        best = np.broadcast_to(np.arange(classes), scores.shape)
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)
