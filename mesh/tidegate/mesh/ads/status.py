"""Status values: which proxies are connected, and what each has acknowledged or rejected."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

from tidegate.mesh.resources import ProxyKind, ResourceKey, ResourceType, Version

__all__ = [
    "AckOutcome",
    "AckReport",
    "NodeId",
    "ProxyAck",
    "ProxyId",
    "ProxyStatus",
    "Rejection",
    "TypeStatus",
    "XdsVariant",
]

NodeId = NewType("NodeId", str)
"""The ``node.id`` of a proxy's bootstrap."""


class XdsVariant(enum.Enum):
    """The two variants of the xDS protocol."""

    SOTW = "state of the world"
    DELTA = "delta"


@dataclass(frozen=True, slots=True, order=True)
class ProxyId:
    """One stream of one proxy.

    The node id alone does not identify a stream. A gRPC client opens a stream for each target that
    it dials. A proxy may reconnect before the server notices that its old stream is dead.

    Attributes:
        node: The proxy's node id.
        stream: Number of the stream, unique during the life of the server.
    """

    node: NodeId
    stream: int

    def __str__(self) -> str:
        return f"{self.node} (stream {self.stream})"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A response that a proxy rejected (NACK). The proxy keeps what it had before.

    Attributes:
        versions: The resources of the response that are still rejected. An empty version stands
            for a removal.
        message: The proxy's error message, shortened.
        at: When the proxy rejected it, in seconds since the epoch.
    """

    versions: Mapping[ResourceKey, Version]
    message: str
    at: float


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """The state of one resource type at a proxy.

    Attributes:
        wildcard: Whether the proxy subscribes to all resources of the type.
        subscribed: How many resources it subscribes to, existing or not. For a wildcard, how many
            exist.
        acknowledged: How many it has accepted in the version that is served now.
        pending: How many are still to be sent or acknowledged.
        rejection: What it rejects now, or None.
    """

    wildcard: bool
    subscribed: int
    acknowledged: int
    pending: int
    rejection: Rejection | None


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """One connected proxy.

    Attributes:
        proxy: The proxy's node id and stream.
        proxy_kind: The proxy kind.
        variant: The xDS variant that it speaks.
        user_agent: Name and version of its software.
        peer: Its address, as gRPC writes it.
        connected_since: When it connected, in seconds since the epoch.
        types: The resource types that it has subscribed to.
    """

    proxy: ProxyId
    proxy_kind: ProxyKind
    variant: XdsVariant
    user_agent: str
    peer: str
    connected_since: float
    types: Mapping[ResourceType, TypeStatus]

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """Everything that the proxy rejects now."""
        return tuple(each.rejection for each in self.types.values() if each.rejection)


class AckOutcome(enum.Enum):
    """Whether a proxy has acknowledged some resources."""

    DONE = "done"
    WAITING = "waiting"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class ProxyAck:
    """What one proxy has acknowledged.

    Attributes:
        proxy: The proxy's node id and stream.
        proxy_kind: The proxy kind.
        outcome: Done, waiting or rejected.
        waiting: The resources that it has neither accepted nor rejected.
        rejections: The responses that it rejected.
    """

    proxy: ProxyId
    proxy_kind: ProxyKind
    outcome: AckOutcome
    waiting: tuple[ResourceKey, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class AckReport:
    """Which proxies have acknowledged some resources and which have not.

    Attributes:
        proxies: Each connected proxy of the proxy kinds that were waited for.
    """

    proxies: tuple[ProxyAck, ...]

    @property
    def done(self) -> bool:
        """Whether every proxy has acknowledged everything."""
        return all(each.outcome is AckOutcome.DONE for each in self.proxies)

    def of(self, outcome: AckOutcome) -> tuple[ProxyAck, ...]:
        """Returns the proxies with an outcome."""
        return tuple(each for each in self.proxies if each.outcome is outcome)
