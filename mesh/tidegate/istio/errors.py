"""What can be wrong with Istio objects, their files, and changes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.errors import TidegateError

__all__ = [
    "EditError",
    "IstioError",
    "IstioObjectErrors",
    "ObjectProblem",
]


@dataclass(frozen=True, slots=True)
class ObjectProblem:
    """One thing that is wrong with an object.

    Attributes:
        source: the file, or whatever the text came from.
        line: the line there, from 1; 0 where there are no lines.
        object: the object, as ``VirtualService models/vision``; empty where none could be made out.
        path: the field, as ``spec.http[0].route[1].weight``; empty for the whole object.
        problem: what is wrong.
        fix: what to do about it.
    """

    source: str
    line: int
    object: str
    path: str
    problem: str
    fix: str

    def __str__(self) -> str:
        source = f"{self.source}:{self.line}" if self.line else self.source
        where = ": ".join(part for part in (source, self.object, self.path) if part)
        return f"{where}: {self.problem}; {self.fix}"


class IstioError(TidegateError):
    """Istio objects cannot be read or changed."""


class IstioObjectErrors(IstioError):  # noqa: N818  # it stands for several
    """Objects are wrong; nothing was taken of any.

    Args:
        problems: all that is wrong, in the order of the files.
    """

    def __init__(self, problems: Sequence[ObjectProblem]) -> None:
        super().__init__("\n".join(str(each) for each in problems))
        self.problems = tuple(problems)


class EditError(IstioError):
    """A change that was asked for cannot be made; the message says what can.

    Args:
        message: why, and what can be done.
        field: what of a shift is wrong, by its path in ``tidegate.mesh.v1.ShiftRequest``.
    """

    def __init__(self, message: str, field: str = "weights") -> None:
        super().__init__(message)
        self.field = field
