"""Faults of rollouts: where they are, what is wrong, and what to write instead."""

from collections.abc import Iterable
from dataclasses import dataclass

from tidegate.errors import TidegateError

__all__ = ["Fault", "FaultsError", "RolloutFileError", "SpecError", "joined"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a rollout.

    Attributes:
        path: The field's path, as people write it: ``spec.strategy.canary.steps[2].pause``. It may
            be empty, for a fault of the whole text.
        text: What is wrong and what to write instead, with the value as it was written.
        source: The file; empty if the rollout came in another way.
        line: The line there, from 1; 0 if unknown.
    """

    path: str
    text: str
    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return ": ".join(part for part in (place, self.path, self.text) if part)


class FaultsError(ValueError):
    """Several faults of one part of a rollout, which the part's check has found together.

    Args:
        found: The faults, by paths from the part.
    """

    def __init__(self, found: Iterable[Fault]) -> None:
        self.found = tuple(found)
        super().__init__("; ".join(str(each) for each in self.found))


class SpecError(TidegateError):
    """Rollouts have faults. The message lists all of them, one a line.

    Attributes:
        faults: The faults, in the order of the text.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(each) for each in self.faults))


class RolloutFileError(TidegateError):
    """A file or folder of rollouts cannot be read."""


def joined(path: str, step: str | int) -> str:
    """Returns the path of a field below another: ``steps[2]``, ``spec.host``, ``labels[a.b/c]``."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    if not step or any(character in step for character in ".[]"):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step
