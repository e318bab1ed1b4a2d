"""What the compiler is told that is not in an Istio object."""

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
"""``exportTo`` of an object that holds for proxies of its namespace only."""


class EndpointState(enum.Enum):
    """What is known of an endpoint from outside the objects."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"


EndpointStates = Mapping[str, EndpointState]
"""States by ``address:port``.

An endpoint of the mesh that is not in it is unhealthy: nobody has seen it serve. One outside of
the mesh (``location: MESH_EXTERNAL``) is healthy unless it is draining: its health is not checked,
even where a host of the mesh has an endpoint at the same address.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """What holds for the whole mesh.

    Attributes:
        listen_address: the address on which gateways listen.
        access_log: where each request is told of, if anywhere.
        tracing: where spans go, if anywhere.
        proxy_namespace: the namespace in which proxies count as living; DestinationRules in it
            come first, and what other namespaces keep to themselves does not hold for them.
        root_namespace: the namespace whose DestinationRules hold where no other does.
    """

    listen_address: str = "127.0.0.1"
    access_log: AccessLog | None = None
    tracing: HttpConnectionManager.Tracing | None = None
    proxy_namespace: str = "istio-ingress"
    root_namespace: str = "istio-system"
