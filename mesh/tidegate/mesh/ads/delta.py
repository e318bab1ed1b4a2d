"""The delta dialect: requests and responses say only what is different.

What is gone is named, and so is what was asked for and does not exist. A stale nonce keeps a
request from counting as an answer, never from changing the subscription. A proxy that comes back
says what it has, and is not sent that again.
"""

import sys
from typing import Final

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tidegate.mesh.ads.status import Protocol
from tidegate.mesh.ads.subscription import SubscriptionDelta
from tidegate.mesh.ads.variant import TYPES_BY_URL, Limits, Request, check_names
from tidegate.mesh.ads.watched_type import ProtocolTraits, Push, WatchedType
from tidegate.mesh.resources import ResourceType, Version

__all__ = ["Delta", "read_delta"]

_HABITS: Final = ProtocolTraits(whole_world=False, tells_absence=True)
_CONTROL_PLANE: Final = base_pb2.ControlPlane(identifier="tidegate")


class Delta:
    """The dialect of ``DeltaAggregatedResources``. Implements `XdsVariant`."""

    protocol: Final = Protocol.DELTA

    def habits(self, type: ResourceType) -> ProtocolTraits:  # noqa: A002
        """See `XdsVariant`."""
        del type
        return _HABITS

    def is_stale(self, exchange: WatchedType, request: Request) -> bool:
        """See `XdsVariant`."""
        del exchange, request
        return False

    def interest(self, exchange: WatchedType, request: Request) -> SubscriptionDelta:
        """See `XdsVariant`."""
        return exchange.subscription.change_by(request.subscribe, request.unsubscribe)

    def encode(self, push: Push) -> discovery_pb2.DeltaDiscoveryResponse:
        """See `XdsVariant`."""
        return discovery_pb2.DeltaDiscoveryResponse(
            resources=[
                discovery_pb2.Resource(name=each.key.name, version=each.version, resource=each.body)
                for each in push.resources
            ],
            removed_resources=push.removed,
            type_url=push.type.url,
            nonce=push.nonce,
            control_plane=_CONTROL_PLANE,
        )


def read_delta(message: discovery_pb2.DeltaDiscoveryRequest, limits: Limits) -> Request | None:
    """Reads a request.

    Returns:
        None for a type that is not served here.

    Raises:
        RefusedRequestError: it asks for more than the limits allow.
    """
    check_names("resource_names_subscribe", message.resource_names_subscribe, limits)
    check_names("resource_names_unsubscribe", message.resource_names_unsubscribe, limits)
    check_names("initial_resource_versions", message.initial_resource_versions, limits)
    check_names("initial_resource_versions", message.initial_resource_versions.values(), limits)
    if (type_ := TYPES_BY_URL.get(message.type_url)) is None:
        return None
    known = message.initial_resource_versions
    return Request(
        type=type_,
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
        # Many streams ask for the same names; one string serves them all.
        subscribe=frozenset(map(sys.intern, message.resource_names_subscribe)),
        unsubscribe=frozenset(message.resource_names_unsubscribe),
        known={sys.intern(name): Version(sys.intern(known[name])) for name in known},
    )
