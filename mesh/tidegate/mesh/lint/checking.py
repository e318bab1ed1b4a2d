"""Runs all rules on all objects, and finds the file and line of each finding.

Objects that cannot be read are findings of the rule ``invalid``. Then no other rule runs: a part of
a mesh has mistakes that the whole mesh does not have. If objects of Kubernetes cannot be read, the
rules about Istio's traffic objects still run. Compile errors that no other rule has found are
findings of the rule ``not-compiled``, so that a mesh without errors here can be served.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import tidegate.mesh.lint.rules  # noqa: F401 - declares the rules
from tidegate.istio.errors import ObjectProblem
from tidegate.istio.reading.documents import Ignored, ParsedObject, parse_part
from tidegate.istio.reading.files import Loaded
from tidegate.istio.reading.nodes import find, line_of
from tidegate.istio.shapes import HostName
from tidegate.mesh.compiler import CompileError, CompileErrors, Compiler, MeshSettings
from tidegate.mesh.lint.findings import KUBERNETES_RULES, RULES, Finding, Rule, Severity
from tidegate.mesh.lint.kubernetes.manifests import Manifests, PlacedManifest
from tidegate.mesh.lint.kubernetes.view import KubernetesView
from tidegate.mesh.lint.view import MeshView

__all__ = [
    "ALL_KUBERNETES_RULES",
    "ALL_RULES",
    "INVALID",
    "KUSTOMIZATION_BELOW",
    "NOT_RENDERED",
    "LocatedFinding",
    "check",
    "findings_of_problems",
]

INVALID = Rule(
    "invalid", Severity.ERROR, "an object cannot be read, or asks for something unsupported"
)
"""The rule of everything that the parser refuses."""

NOT_COMPILED = Rule("not-compiled", Severity.ERROR, "objects contradict each other")
"""The rule of compile errors that no other rule has found."""

NOT_RENDERED = Rule(
    "not-rendered",
    Severity.ERROR,
    "a folder is a kustomization, and kubectl is missing or cannot render it",
    "no rule looked at its objects",
)
"""The rule of kustomizations that cannot be rendered."""

KUSTOMIZATION_BELOW = Rule(
    "kustomization-below",
    Severity.NOTE,
    "a folder holds kustomizations and is none itself",
    "their files are parts of objects, so lint leaves them out until one is named",
)
"""The rule of kustomizations that are linted only by themselves."""

ALL_RULES: tuple[Rule, ...] = (INVALID, NOT_COMPILED, *RULES)
"""Every rule about Istio's traffic objects."""

ALL_KUBERNETES_RULES: tuple[Rule, ...] = (NOT_RENDERED, KUSTOMIZATION_BELOW, *KUBERNETES_RULES)
"""Every rule about objects of Kubernetes, and about kustomizations."""


@dataclass(frozen=True, slots=True)
class LocatedFinding:
    """A finding with its file and line.

    Attributes:
        rule: The name of the rule.
        severity: How serious it is.
        object: The object, as ``VirtualService models/vision``.
        path: The field; empty for the whole object.
        source: The file.
        line: The line there, from 1.
        traffic: What happens to requests.
        fix: What to do about it.
    """

    rule: str
    severity: Severity
    object: str
    path: str
    source: str
    line: int
    traffic: str
    fix: str


def check(
    loaded: Loaded,
    p99: Mapping[HostName, dt.timedelta] | None = None,
    manifests: Manifests | None = None,
    *,
    compiles: bool = True,
) -> list[LocatedFinding]:
    """Finds what is wrong with objects, in the order of files and lines.

    Args:
        loaded: The objects and their files.
        p99: The 99th percentile of hosts' response times, in addition to annotations.
        manifests: Objects of Kubernetes in the same files; None leaves them out.
        compiles: Whether Tidegate's compiler can read the objects, so that its errors count.
    """
    manifests = manifests or Manifests()
    view = MeshView(loaded.objects, loaded.ignored, p99 or {}, KubernetesView(manifests))
    places = _Places(loaded)
    rules = RULES if manifests.problems else {**RULES, **KUBERNETES_RULES}
    reports = [
        _report(rule, finding, places)
        for rule, findings in rules.items()
        for finding in dict.fromkeys(findings(view))
    ]
    reports += findings_of_problems(manifests.problems)
    reports += [
        _report(NOT_COMPILED, _refused(error), places)
        for error in (_compile_errors(view) if compiles else ())
        if not any(_same(report, error) for report in reports)
    ]
    order = {str(path): index for index, path in enumerate(loaded.files)}
    return sorted(reports, key=lambda each: (order[each.source], each.line))


def findings_of_problems(problems: Iterable[ObjectProblem]) -> list[LocatedFinding]:
    """The problems that the parser found, as findings."""
    return [
        LocatedFinding(
            *(INVALID.name, INVALID.severity, each.object, each.path, each.source, each.line),
            each.problem,
            each.fix,
        )
        for each in problems
    ]


def _compile_errors(view: MeshView) -> tuple[CompileError, ...]:
    """The compile errors, without those about hosts that the files do not define."""
    try:
        Compiler(MeshSettings()).compile(view.objects, {})
    except CompileErrors as found:
        # The compiler does not know Services of Kubernetes, so it refuses routes to them.
        unknown_hosts = any(host.entry is None for host in view.hosts.values())
        return tuple(
            each
            for each in found.errors
            if not (unknown_hosts and each.path.startswith("spec.http"))
        )
    return ()


def _refused(error: CompileError) -> Finding:
    return Finding(
        error.object,
        error.path,
        f"{error.reason}: nothing is compiled, and proxies keep what they have",
        error.fix,
    )


def _same(report: LocatedFinding, error: CompileError) -> bool:
    """Whether a rule has found an error already, at the same field or around it."""
    around = report.path.startswith(error.path) or error.path.startswith(report.path)
    return report.severity is Severity.ERROR and report.object == str(error.object) and around


class _Places:
    """Finds lines; it parses a part of a file once for all its findings."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._parsed: dict[str, list[ParsedObject]] = {}

    def of(self, finding: Finding) -> tuple[str, int]:
        """The file and line of a finding."""
        name = finding.object
        if isinstance(name, PlacedManifest):
            return name.source, name.line(finding.path)
        if isinstance(name, Ignored):
            return name.source, name.line
        place = self._loaded.place_of(name)
        if place is None:
            raise LookupError(f"{name} is in no file")
        file, part, lines_before = place
        if part.text not in self._parsed:
            self._parsed[part.text] = parse_part(part.text, "").objects
        (node,) = (each.node for each in self._parsed[part.text] if each.object.name == name)
        return str(file.path), lines_before + line_of(find(node, finding.path))


def _report(rule: Rule, finding: Finding, places: _Places) -> LocatedFinding:
    source, line = places.of(finding)
    name = finding.object
    label = f"{name.kind} {name.name}" if isinstance(name, Ignored) else str(name)
    lesser = rule.lesser if finding.is_lesser else None
    return LocatedFinding(
        *(rule.name, lesser or rule.severity, label, finding.path, source, line),
        finding.traffic,
        finding.fix,
    )
