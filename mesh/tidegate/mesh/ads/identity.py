"""The identity of a proxy, read from the ``node`` of its first request."""

from dataclasses import dataclass
from typing import Final

from envoy.config.core.v3 import base_pb2

from tidegate.mesh.ads.errors import RefusedRequestError
from tidegate.mesh.ads.status import NodeId, XdsVariant
from tidegate.mesh.resources import ProxyKind

__all__ = ["NodeIdentity", "identify"]

_MAX_ID_BYTES: Final = 1024
_MAX_SHOWN_CHARACTERS: Final = 128


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The proxy that opened a stream.

    Attributes:
        node: The proxy's node id.
        proxy_kind: The proxy kind, which decides what resources it gets.
        variant: The xDS variant that it speaks.
        user_agent: Name and version of its software.
        peer: Its address, as gRPC writes it.
    """

    node: NodeId
    proxy_kind: ProxyKind
    variant: XdsVariant
    user_agent: str
    peer: str


def identify(node: base_pb2.Node, variant: XdsVariant, peer: str) -> NodeIdentity:
    """Reads the identity of a proxy from its first request.

    Raises:
        RefusedRequestError: The node has no id or an id that is too long, or its user agent is
            neither Envoy nor gRPC.
    """
    if not node.id:
        raise RefusedRequestError("node.id", "is empty; name the proxy in its bootstrap")
    if len(node.id.encode()) > _MAX_ID_BYTES:
        raise RefusedRequestError("node.id", f"is longer than {_MAX_ID_BYTES} bytes")
    version = node.user_agent_version
    if node.HasField("user_agent_build_version"):
        build = node.user_agent_build_version.version
        version = f"{build.major_number}.{build.minor_number}.{build.patch}"
    return NodeIdentity(
        node=NodeId(node.id),
        proxy_kind=_proxy_kind_of(node.user_agent_name),
        variant=variant,
        user_agent=f"{node.user_agent_name} {version}".strip()[:_MAX_SHOWN_CHARACTERS],
        peer=peer,
    )


def _proxy_kind_of(user_agent: str) -> ProxyKind:
    if user_agent == "envoy":
        return ProxyKind.ENVOY
    if user_agent.startswith("gRPC"):
        return ProxyKind.GRPC
    shown = user_agent[:_MAX_SHOWN_CHARACTERS]
    raise RefusedRequestError(
        "node.user_agent_name", f"is {shown!r}; only 'envoy' and 'gRPC …' are served"
    )
