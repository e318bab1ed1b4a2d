"""What the two xDS variants share: the request as a value, its limits, and the rules' interface.

Proxies are not trusted. The number and the length of the names in a request are checked before
anything of it is stored, so that the memory of a stream is bounded.
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
    """Limits on what one proxy, or all of them, may ask of the server.

    Attributes:
        names: Most resources of one type that a stream may subscribe to by name.
        name_bytes: Most bytes in one name, in UTF-8.
        streams: Most streams open at the same time.
        first_request_s: Longest wait for the first request of a stream, in seconds.
        unsolicited_requests_per_s: Requests per second and stream, beyond ACKs and NACKs, that are
            read at full speed. The server reads faster ones more slowly.
        unsolicited_requests_burst: How many of them are read at once at full speed.
    """

    names: int = 20_000
    name_bytes: int = 1024
    streams: int = 1000
    first_request_s: float = 10.0
    unsolicited_requests_per_s: float = 200.0
    unsolicited_requests_burst: int = 2000


@dataclass(frozen=True, slots=True)
class XdsRequest:
    """A request of either variant.

    Attributes:
        type: The resource type.
        nonce: Nonce of the response that it answers. It may be empty or stale.
        error: Why the proxy rejects that response, or None if it does not.
        subscribe: The names subscribed to: all of them, or in delta the additional ones.
        unsubscribe: The names no longer subscribed to. Always empty in state of the world.
        initial_versions: What the proxy has from an earlier stream, as versions by name. Always
            empty in state of the world.
    """

    type: ResourceType
    nonce: str
    error: str | None
    subscribe: Collection[str]
    unsubscribe: Collection[str] = ()
    initial_versions: Mapping[str, Version] = field(default_factory=dict)


class VariantRules(Protocol):
    """What differs between the two variants of the xDS protocol."""

    @property
    def variant(self) -> XdsVariant:
        """The variant."""
        ...

    def traits(self, type: ResourceType) -> ProtocolTraits:  # noqa: A002
        """Returns how the variant treats a type."""
        ...

    def is_stale(self, watched: WatchedType, request: XdsRequest) -> bool:
        """Whether the server sent a newer response meanwhile, so that the request is ignored."""
        ...

    def update_subscription(self, watched: WatchedType, request: XdsRequest) -> SubscriptionDelta:
        """Applies the request to the subscription."""
        ...

    def encode(self, response: XdsResponse) -> Message:
        """Encodes a response."""
        ...


def check_names(field_name: str, names: Collection[str], limits: ProxyLimits) -> None:
    """Checks the names in a field of a request.

    Raises:
        RefusedRequestError: There are too many names, or one is empty or too long.
    """
    if len(names) > limits.names:
        raise RefusedRequestError(
            field_name, f"has {len(names)} names; the limit is {limits.names}"
        )
    for name in names:
        if not name:
            raise RefusedRequestError(field_name, "has an empty name")
        # A character has at most four bytes, so most names need no encoding to be checked.
        if len(name) * 4 > limits.name_bytes and len(name.encode()) > limits.name_bytes:
            raise RefusedRequestError(
                field_name, f"has a name longer than {limits.name_bytes} bytes: {name[:64]}…"
            )
