"""Finds mistakes in Istio objects before requests do, and says what becomes of a request.

The rules are functions of the mesh, in `route_rules`, `host_rules` and `policy_rules`; `checking`
gathers and places what they find, `explaining` puts routes into words.
"""

from tidegate.mesh.lint.checking import Report, check, problems_as_report
from tidegate.mesh.lint.explaining import explain
from tidegate.mesh.lint.findings import Finding, Rule, Severity

__all__ = ["Finding", "Report", "Rule", "Severity", "check", "explain", "problems_as_report"]
