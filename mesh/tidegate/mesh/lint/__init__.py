"""Finds mistakes in Istio objects before requests do, and explains what happens to a request.

`rules` holds the rules, which are functions of the mesh (`view`). `checking` runs them and finds
the file and line of each finding. `explaining` puts routes into words, and `requests` what happens
to one request.
"""

from tidegate.mesh.lint.checking import LocatedFinding, check, findings_of_problems
from tidegate.mesh.lint.explaining import explain
from tidegate.mesh.lint.findings import Finding, Rule, Severity
from tidegate.mesh.lint.requests import SampleRequest, explain_request, reached

__all__ = [
    "Finding",
    "LocatedFinding",
    "Rule",
    "SampleRequest",
    "Severity",
    "check",
    "explain",
    "explain_request",
    "findings_of_problems",
    "reached",
]
