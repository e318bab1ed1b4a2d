"""What keeps objects from being compiled: where, what is wrong, and what to write instead."""

from dataclasses import dataclass

from tidegate.errors import TidegateError
from tidegate.istio.names import ObjectName

__all__ = ["CompileError", "CompileErrors"]


@dataclass(frozen=True, slots=True, order=True)
class CompileError:
    """One thing that only shows when objects are seen together.

    Attributes:
        object: the object to change.
        path: the field in it, such as ``spec.http[0].route[1].destination.subset``.
        reason: what is wrong.
        fix: what to write instead.
    """

    object: ObjectName
    path: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.object}: {self.path}: {self.reason}; {self.fix}"


class CompileErrors(TidegateError):  # noqa: N818 - several at once
    """Objects contradict each other; nothing was compiled.

    Args:
        errors: everything that is wrong.
    """

    def __init__(self, errors: tuple[CompileError, ...]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors
