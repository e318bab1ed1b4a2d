"""Findings, and the registries of the rules that make them.

A rule is a function from the mesh to findings. It is declared with its name, its severity and a
sentence; `tools/generate_mesh_tables.py` makes the tables of the documentation from these. Rules
about objects of Kubernetes are in a registry of their own, and say why they exist.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.istio.names import ObjectName
from tidegate.istio.reading.documents import Ignored
from tidegate.mesh.lint.kubernetes.manifests import PlacedManifest
from tidegate.mesh.lint.kubernetes.shapes import KubernetesObject

if TYPE_CHECKING:
    from tidegate.mesh.lint.view import MeshView

__all__ = [
    "KUBERNETES_RULES",
    "RULES",
    "Finding",
    "Rule",
    "Severity",
    "kubernetes_rule",
    "rule",
]


class Severity(enum.Enum):
    """How serious a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of mistake.

    Attributes:
        name: Its name in output.
        severity: An error loses requests or cannot be compiled; a warning surprises; a note says
            what lint cannot judge, or what production demands.
        summary: What is wrong where it applies.
        why: Why it matters; empty for rules about Istio's traffic objects, whose findings say it.
        lesser: How serious the findings are that are less certain or matter less; see `Finding`.
    """

    name: str
    severity: Severity
    summary: str
    why: str = ""
    lesser: Severity | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake in an object.

    Attributes:
        object: The object, or a document that is not looked at.
        path: The field; empty for the whole object.
        traffic: What happens to requests.
        fix: What to do about it.
        is_lesser: Whether it has the lesser severity of its rule.
    """

    object: ObjectName | Ignored | PlacedManifest[KubernetesObject]
    path: str
    traffic: str
    fix: str
    is_lesser: bool = False


Check = Callable[["MeshView"], Iterator[Finding]]

RULES: dict[Rule, Check] = {}
"""Every rule about Istio's traffic objects with its function, in the order of their declaration."""

KUBERNETES_RULES: dict[Rule, Check] = {}
"""Every rule about objects of Kubernetes with its function, in the order of their declaration."""


def rule(name: str, severity: Severity, summary: str) -> Callable[[Check], Check]:
    """Declares a function as a rule."""

    def declare(check: Check) -> Check:
        RULES[Rule(name, severity, summary)] = check
        return check

    return declare


def kubernetes_rule(
    name: str, severity: Severity, summary: str, why: str, lesser: Severity | None = None
) -> Callable[[Check], Check]:
    """Declares a function as a rule about objects of Kubernetes."""

    def declare(check: Check) -> Check:
        KUBERNETES_RULES[Rule(name, severity, summary, why, lesser)] = check
        return check

    return declare
