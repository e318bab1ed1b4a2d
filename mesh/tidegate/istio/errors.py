"""Errors of Istio objects, their files and their edits."""

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
    """One problem of an object.

    Attributes:
        source: The file, or another source of the text.
        line: The line there, from 1; 0 where there are no lines.
        object: The object, as ``VirtualService models/vision``; empty where it is not known.
        path: The field, as ``spec.http[0].route[1].weight``; empty for the whole object.
        problem: The problem.
        fix: What to do about it.
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


class IstioObjectErrors(IstioError):  # noqa: N818  # it has several errors
    """Objects have problems; none of the objects was accepted.

    Args:
        problems: All problems, in the order of the files.
    """

    def __init__(self, problems: Sequence[ObjectProblem]) -> None:
        super().__init__("\n".join(str(each) for each in problems))
        self.problems = tuple(problems)


class EditError(IstioError):
    """An edit cannot be made. The message says why and what is possible.

    Args:
        message: The reason, and what to do.
        field: The wrong field of the shift, by its path in ``tidegate.mesh.v1.ShiftRequest``.
    """

    def __init__(self, message: str, field: str = "weights") -> None:
        super().__init__(message)
        self.field = field
