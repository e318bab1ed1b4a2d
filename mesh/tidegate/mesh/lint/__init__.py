"""Finds mistakes in Istio objects before requests do, and says what becomes of a request.

The rules are functions of the mesh, in the modules `*_rules`; `checking` gathers and places what
they find, `explaining` puts routes into words, `walking` what becomes of one request.
"""

from tidegate.mesh.lint.checking import Report, check, problems_as_report
from tidegate.mesh.lint.explaining import explain
from tidegate.mesh.lint.findings import Finding, Rule, Severity
from tidegate.mesh.lint.requests import Request
from tidegate.mesh.lint.walking import explain_request, reached

__all__ = [
    "Finding",
    "Report",
    "Request",
    "Rule",
    "Severity",
    "check",
    "explain",
    "explain_request",
    "problems_as_report",
    "reached",
]
