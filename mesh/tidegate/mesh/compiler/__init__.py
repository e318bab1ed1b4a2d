"""The compiler: makes the resources of proxies from Istio objects and states of endpoints.

    compiler = Compiler(MeshSettings(listen_address="127.0.0.1"))
    before = compiler.compile(objects, states)
    after = compiler.compile(objects.with_(virtual_service), states)
    after.changed_from(before)[ProxyKind.ENVOY]  # one virtual host

It is pure (no files, sockets or clocks) and incremental: a change costs only what it changes.

`hosts` and `gateways` resolve objects that refer to each other. `clusters` and `routes` turn them
into Envoy's messages, and so do `listeners` for gateways and `proxyless` for gRPC clients.
`compiler` calls them for the units that changed, and `compiled` holds the result.
"""

from tidegate.mesh.compiler.compiled import Compiled
from tidegate.mesh.compiler.compiler import Compiler
from tidegate.mesh.compiler.errors import CompileError, CompileErrors
from tidegate.mesh.compiler.naming import cluster_name
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
    "unsupported",
]
