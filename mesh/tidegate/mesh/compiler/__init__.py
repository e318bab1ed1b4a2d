"""The compiler: Istio objects and endpoints' states to the resources that proxies take.

    compiler = Compiler(MeshSettings(listen_address="127.0.0.1"))
    before = compiler.compile(objects, states)
    after = compiler.compile(objects.with_(virtual_service), states)
    after.changed_from(before)[ProxyKind.ENVOY]  # one virtual host

Pure and incremental: no files, no sockets, no clocks, and a change costs what it changes.
"""

from tidegate.mesh.compiler.compiled import Compiled
from tidegate.mesh.compiler.compiler import Compiler
from tidegate.mesh.compiler.errors import CompileError, CompileErrors
from tidegate.mesh.compiler.naming import cluster_name, listener_name, virtual_host_name
from tidegate.mesh.compiler.settings import EndpointState, EndpointStates, MeshSettings
from tidegate.mesh.compiler.unsupported import unsupported

__all__ = [
    "CompileError",
    "CompileErrors",
    "Compiled",
    "Compiler",
    "EndpointState",
    "EndpointStates",
    "MeshSettings",
    "cluster_name",
    "listener_name",
    "unsupported",
    "virtual_host_name",
]
