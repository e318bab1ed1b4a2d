"""Finds mistakes in objects before requests do, and explains what happens to a request.

`rules` holds the rules, which are functions of the mesh (`view`). `sources` reads files, folders
and kustomizations (`kustomize`), and `kubernetes` reads the objects that are not Istio's.
`checking` runs the rules and finds the file and line of each finding. `knowledge` knows the gRPC
services of protos and the metrics of exporters. `explaining` puts routes into words, and `requests`
what happens to one request.
"""

from tidegate.mesh.lint.checking import LocatedFinding, check
from tidegate.mesh.lint.explaining import explain
from tidegate.mesh.lint.findings import Finding, Rule, Severity
from tidegate.mesh.lint.requests import SampleRequest, explain_request, reached
from tidegate.mesh.lint.sources import Sources, read_sources

__all__ = [
    "Finding",
    "LocatedFinding",
    "Rule",
    "SampleRequest",
    "Severity",
    "Sources",
    "check",
    "explain",
    "explain_request",
    "reached",
    "read_sources",
]
