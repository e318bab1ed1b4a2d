"""What a finding says, and the rules that make findings.

A rule is a function from the mesh to findings, declared with its name, its severity and a sentence;
the table in the documentation is made of these declarations.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.istio.names import ObjectName
from tidegate.istio.parsing import Ignored

if TYPE_CHECKING:
    from tidegate.mesh.lint.view import MeshView

__all__ = ["RULES", "Finding", "Rule", "Severity", "rule"]


class Severity(enum.Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of mistake.

    Attributes:
        name: what it is called in output.
        severity: an error loses requests or is refused; a warning surprises.
        summary: what is wrong where it applies.
    """

    name: str
    severity: Severity
    summary: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake in an object.

    Attributes:
        object: the object, or a document beside them.
        path: the field; empty for the whole object.
        traffic: what happens to requests.
        fix: what to do about it.
    """

    object: ObjectName | Ignored
    path: str
    traffic: str
    fix: str


Check = Callable[["MeshView"], Iterator[Finding]]

RULES: dict[Rule, Check] = {}
"""Every rule with its function, in the order of their declaration."""


def rule(name: str, severity: Severity, summary: str) -> Callable[[Check], Check]:
    """Declares a function as a rule."""

    def declare(check: Check) -> Check:
        RULES[Rule(name, severity, summary)] = check
        return check

    return declare
