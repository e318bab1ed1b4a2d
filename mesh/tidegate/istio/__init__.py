"""Istio's objects as data: read, check, edit and write them.

An object comes from YAML text with line numbers or, as plain values, from an API server. One module
for each kind declares its messages: `virtual_service`, `destination_rule`, `gateway` and
`service_entry`. `reading` makes objects, `rules` applies Istio's validation to them, and `editing`
changes them in place, in a text or in a manifest. Whether an object can be compiled is the
compiler's verdict (`tidegate.mesh.compiler.unsupported`).
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
