"""What the two dialects of the protocol have in common: a request as a value, and its bounds.

Proxies are not trusted to be sane. How many names a request may bring and how long they may be is
checked before anything of it is kept: what a stream can make the server remember is bounded.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message

from tidegate.mesh.ads.errors import RefusedRequestError
from tidegate.mesh.ads.status import XdsVariant
from tidegate.mesh.ads.subscription import SubscriptionDelta
from tidegate.mesh.ads.watched_type import ProtocolTraits, WatchedType, XdsResponse
from tidegate.mesh.resources import ResourceType, Version

__all__ = ["TYPES_BY_URL", "ProxyLimits", "VariantRules", "XdsRequest", "check_names"]

TYPES_BY_URL: Final[Mapping[str, ResourceType]] = {each.url: each for each in ResourceType}

RequestT_contra = TypeVar("RequestT_contra", bound=Message, contravariant=True)


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """How much one proxy, or all of them, may ask of the server.

    Attributes:
        names: resources of one type that a stream may ask for by name.
        name_bytes: length of one name, in UTF-8.
        streams: open at the same time.
        first_request_s: how long a stream may say nothing at first, in seconds.
        unsolicited_requests_per_s: requests beyond the answers to responses that are taken at full
            speed, per second and stream; what comes faster is read more slowly.
        unsolicited_requests_burst: so many of them are taken at once.
    """

    names: int = 20_000
    name_bytes: int = 1024
    streams: int = 1000
    first_request_s: float = 10.0
    unsolicited_requests_per_s: float = 200.0
    unsolicited_requests_burst: int = 2000


@dataclass(frozen=True, slots=True)
class XdsRequest:
    """A request of either dialect.

    Attributes:
        type: of the resources.
        nonce: of the response that it answers; may be empty or stale.
        error: why that response is refused; None when it is not.
        subscribe: names that are asked for: all of them, or in delta only the further ones.
        unsubscribe: names that are no longer asked for; always empty in state of the world.
        initial_versions: What the proxy has from an earlier stream; empty in state of the world.
    """

    type: ResourceType
    nonce: str
    error: str | None
    subscribe: Collection[str]
    unsubscribe: Collection[str] = ()
    initial_versions: Mapping[str, Version] = field(default_factory=dict)


class VariantRules(Protocol):
    """One of the two ways in which the protocol is spoken."""

    @property
    def variant(self) -> XdsVariant:
        """Its name."""
        ...

    def traits(self, type: ResourceType) -> ProtocolTraits:  # noqa: A002
        """How it treats a type."""
        ...

    def is_stale(self, watched: WatchedType, request: XdsRequest) -> bool:
        """Whether the request was overtaken by a response and is to be ignored."""
        ...

    def delta(self, watched: WatchedType, request: XdsRequest) -> SubscriptionDelta:
        """Takes what the request asks for into the subscription."""
        ...

    def encode(self, response: XdsResponse) -> Message:
        """Writes a response."""
        ...


def check_names(field_name: str, names: Collection[str], limits: ProxyLimits) -> None:
    """Bounds what a request may make the server remember.

    Raises:
        RefusedRequestError: there are too many names, or one is empty or too long.
    """
    if len(names) > limits.names:
        raise RefusedRequestError(
            field_name, f"has {len(names)} names, at most {limits.names} may be"
        )
    for name in names:
        if not name:
            raise RefusedRequestError(field_name, "has an empty name")
        # A character is at most four bytes, so most names need not be encoded.
        if len(name) * 4 > limits.name_bytes and len(name.encode()) > limits.name_bytes:
            raise RefusedRequestError(
                field_name, f"has a name longer than {limits.name_bytes} bytes: {name[:64]}…"
            )
