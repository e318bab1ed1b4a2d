"""Istio's objects as values: parsed and checked, gathered, edited in their files.

A module for each kind declares its messages (`virtual_service`, `destination_rule`, `gateway`,
`service_entry`); `reading` and `rules` read and check what is declared, `files` keeps objects and
their YAML together, and `edits` are the changes that a traffic shift is made of.
"""

from tidegate.istio.editing.file_changes import FileChange, plan_changes
from tidegate.istio.editing.manifests import edit_manifest
from tidegate.istio.errors import (
    EditError,
    IstioError,
    IstioObjectErrors,
    ObjectProblem,
)
from tidegate.istio.names import MESH, Kind, ObjectName, full_gateway_name, full_host_name
from tidegate.istio.objects import IstioObject, IstioObjects
from tidegate.istio.reading.documents import Ignored, parse, parse_manifest
from tidegate.istio.reading.files import Loaded, read_files

__all__ = [
    "MESH",
    "EditError",
    "FileChange",
    "Ignored",
    "IstioError",
    "IstioObject",
    "IstioObjectErrors",
    "IstioObjects",
    "Kind",
    "Loaded",
    "ObjectName",
    "ObjectProblem",
    "edit_manifest",
    "full_gateway_name",
    "full_host_name",
    "parse",
    "parse_manifest",
    "plan_changes",
    "read_files",
]
