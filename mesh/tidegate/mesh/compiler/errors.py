"""Compile errors: the object and field, what is wrong, and what to write instead."""

from dataclasses import dataclass

from tidegate.errors import TidegateError
from tidegate.istio.names import ObjectName

__all__ = ["CompileError", "CompileErrors"]


@dataclass(frozen=True, slots=True, order=True)
class CompileError:
    """One mistake that shows only when all objects are compared.

    Attributes:
        object: The object to change.
        path: The field in it, such as ``spec.http[0].route[1].destination.subset``.
        reason: What is wrong.
        fix: What to write instead.
    """

    object: ObjectName
    path: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.object}: {self.path}: {self.reason}; {self.fix}"


class CompileErrors(TidegateError):  # noqa: N818 - several errors
    """Objects contradict each other; nothing was compiled.

    Args:
        errors: All errors.
    """

    def __init__(self, errors: tuple[CompileError, ...]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors
