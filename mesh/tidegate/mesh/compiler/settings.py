"""The compiler's other inputs: settings of the mesh and states of endpoints."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a generated name
    HttpConnectionManager,
)

__all__ = ["OWN_NAMESPACE", "EndpointState", "EndpointStates", "MeshSettings"]


OWN_NAMESPACE: Final = (".",)
"""The ``exportTo`` of an object that holds only for the proxies of its own namespace."""


class EndpointState(enum.Enum):
    """The state of an endpoint, which is not in any object."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"


EndpointStates = Mapping[str, EndpointState]
"""States by ``address:port``.

An endpoint of the mesh without a state is unhealthy: no check has seen it serve. An endpoint
outside of the mesh (``location: MESH_EXTERNAL``) is healthy unless it is draining. Its health is
not checked, even if a host of the mesh has an endpoint at the same address.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """Settings of the whole mesh.

    Attributes:
        listen_address: The address on which gateways listen.
        access_log: The access log of all gateways, if there is one.
        mirror_log: The access log of mirrored copies, if there is one.
        tracing: The tracing of all gateways, if there is any.
        proxy_namespace: The namespace of all proxies. Its DestinationRules come first, and proxies
            do not see objects that other namespaces keep to themselves.
        root_namespace: The namespace whose DestinationRules hold where no other does.
    """

    listen_address: str = "127.0.0.1"
    access_log: AccessLog | None = None
    mirror_log: AccessLog | None = None
    tracing: HttpConnectionManager.Tracing | None = None
    proxy_namespace: str = "istio-ingress"
    root_namespace: str = "istio-system"
