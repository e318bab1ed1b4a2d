"""Findings, and the registry of the rules that make them.

A rule is a function from the mesh to findings. It is declared with its name, its severity and a
sentence; `tools/generate_mesh_tables.py` makes the table of the documentation from these.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.istio.names import ObjectName
from tidegate.istio.reading.documents import Ignored

if TYPE_CHECKING:
    from tidegate.mesh.lint.view import MeshView

__all__ = ["RULES", "Finding", "Rule", "Severity", "rule"]


class Severity(enum.Enum):
    """How serious a finding is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of mistake.

    Attributes:
        name: Its name in output.
        severity: An error loses requests or cannot be compiled; a warning surprises.
        summary: What is wrong where it applies.
    """

    name: str
    severity: Severity
    summary: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake in an object.

    Attributes:
        object: The object, or a document that is not compiled.
        path: The field; empty for the whole object.
        traffic: What happens to requests.
        fix: What to do about it.
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
