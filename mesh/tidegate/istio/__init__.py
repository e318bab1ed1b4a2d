"""Istio's objects as values: parsed and checked, gathered, edited in their files.

A module for each kind declares its messages (`virtual_service`, `destination_rule`, `gateway`,
`service_entry`); `reading` and `rules` read and check what is declared, `files` keeps objects and
their YAML together, and `edits` are the changes that a traffic shift is made of.
"""

from tidegate.istio.changes import FileChange, apply_changes, plan_changes
from tidegate.istio.errors import (
    EditError,
    FileChangedError,
    IstioError,
    IstioObjectErrors,
    ObjectProblem,
)
from tidegate.istio.files import Loaded, load, read_files
from tidegate.istio.manifests import edit_manifest
from tidegate.istio.names import MESH, Kind, ObjectName, full_gateway_name, full_host_name
from tidegate.istio.objects import IstioObject, IstioObjects
from tidegate.istio.parsing import Ignored, parse, parse_manifest

__all__ = [
    "MESH",
    "EditError",
    "FileChange",
    "FileChangedError",
    "Ignored",
    "IstioError",
    "IstioObject",
    "IstioObjectErrors",
    "IstioObjects",
    "Kind",
    "Loaded",
    "ObjectName",
    "ObjectProblem",
    "apply_changes",
    "edit_manifest",
    "full_gateway_name",
    "full_host_name",
    "load",
    "parse",
    "parse_manifest",
    "plan_changes",
    "read_files",
]
