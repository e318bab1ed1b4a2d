"""What is known of the proxies: who is connected, what each has taken, and what it refused."""

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
"""What a proxy calls itself: ``node.id`` of its bootstrap."""


class XdsVariant(enum.Enum):
    """The two ways in which a proxy may ask."""

    SOTW = "state of the world"
    DELTA = "delta"


@dataclass(frozen=True, slots=True, order=True)
class ProxyId:
    """One stream of one proxy.

    A gRPC client opens a stream for each target that it dials, all with the same node id, and a
    proxy that comes back may do so before its old stream is found dead.

    Attributes:
        node: what the proxy calls itself.
        stream: number of the stream, unique for the life of the server.
    """

    node: NodeId
    stream: int

    def __str__(self) -> str:
        return f"{self.node} (stream {self.stream})"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A response that a proxy refused (NACK). It goes on with what it had before.

    Attributes:
        versions: what the response carried that is still refused; an empty version is a removal.
        message: the proxy's words, shortened.
        at: when, in seconds since the epoch.
    """

    versions: Mapping[ResourceKey, Version]
    message: str
    at: float


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """Where a proxy stands with one type of resources.

    Attributes:
        wildcard: whether it asks for all of them.
        subscribed: how many it asks for, existing or not; of a wildcard, those that exist.
        acknowledged: how many it has accepted in the version that is served now.
        pending: how many it has yet to be sent or to answer for.
        rejection: what it refuses; None when nothing.
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
        proxy: its node id and stream.
        proxy_kind: which resources are made for it.
        variant: how it asks.
        user_agent: name and version of its software.
        peer: its address, as gRPC writes it.
        connected_since: seconds since the epoch.
        types: the types it has asked for.
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
        """All that it refuses now."""
        return tuple(each.rejection for each in self.types.values() if each.rejection)


class AckOutcome(enum.Enum):
    """How far a proxy is with the resources it was asked about."""

    DONE = "done"
    WAITING = "waiting"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class ProxyAck:
    """How far one proxy is.

    Attributes:
        proxy: its node id and stream.
        proxy_kind: which resources are made for it.
        outcome: done, waiting or rejected.
        waiting: what it has neither accepted nor refused.
        rejections: what it refused.
    """

    proxy: ProxyId
    proxy_kind: ProxyKind
    outcome: AckOutcome
    waiting: tuple[ResourceKey, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class AckReport:
    """Who has acknowledged and who has not.

    Attributes:
        proxies: each proxy that is connected and of a proxy kind that was asked about.
    """

    proxies: tuple[ProxyAck, ...]

    @property
    def done(self) -> bool:
        """Whether every one has acknowledged everything."""
        return all(each.outcome is AckOutcome.DONE for each in self.proxies)

    def of(self, outcome: AckOutcome) -> tuple[ProxyAck, ...]:
        """The proxies of one outcome."""
        return tuple(each for each in self.proxies if each.outcome is outcome)
