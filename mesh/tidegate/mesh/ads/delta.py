"""The delta variant of xDS: requests and responses carry only differences.

Responses name removed resources, and resources that a proxy subscribes to and that do not exist. A
request with a stale nonce is no ACK, but it still changes the subscription. A proxy that reconnects
names the versions it has, and the server does not send those again.
"""

import sys
from typing import Final

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tidegate.mesh.ads.status import XdsVariant
from tidegate.mesh.ads.subscription import SubscriptionDelta
from tidegate.mesh.ads.variant import TYPES_BY_URL, ProxyLimits, XdsRequest, check_names
from tidegate.mesh.ads.watched_type import ProtocolTraits, WatchedType, XdsResponse
from tidegate.mesh.resources import ResourceType, Version

__all__ = ["DeltaRules", "read_delta"]

_TRAITS: Final = ProtocolTraits(full_state=False, reports_absence=True)
_CONTROL_PLANE: Final = base_pb2.ControlPlane(identifier="tidegate")


class DeltaRules:
    """The rules of ``DeltaAggregatedResources``. Implements `VariantRules`."""

    variant: Final = XdsVariant.DELTA

    def traits(self, type: ResourceType) -> ProtocolTraits:  # noqa: A002
        """See `VariantRules`."""
        del type
        return _TRAITS

    def is_stale(self, watched: WatchedType, request: XdsRequest) -> bool:
        """See `VariantRules`."""
        del watched, request
        return False

    def update_subscription(self, watched: WatchedType, request: XdsRequest) -> SubscriptionDelta:
        """See `VariantRules`."""
        return watched.subscription.update(request.subscribe, request.unsubscribe)

    def encode(self, response: XdsResponse) -> discovery_pb2.DeltaDiscoveryResponse:
        """See `VariantRules`."""
        return discovery_pb2.DeltaDiscoveryResponse(
            resources=[
                discovery_pb2.Resource(name=each.key.name, version=each.version, resource=each.body)
                for each in response.resources
            ],
            removed_resources=response.removed,
            type_url=response.type.url,
            nonce=response.nonce,
            control_plane=_CONTROL_PLANE,
        )


def read_delta(
    message: discovery_pb2.DeltaDiscoveryRequest, limits: ProxyLimits
) -> XdsRequest | None:
    """Reads a request.

    Returns:
        The request, or None for a resource type that is not served.

    Raises:
        RefusedRequestError: It asks for more than the limits allow.
    """
    check_names("resource_names_subscribe", message.resource_names_subscribe, limits)
    check_names("resource_names_unsubscribe", message.resource_names_unsubscribe, limits)
    check_names("initial_resource_versions", message.initial_resource_versions, limits)
    check_names("initial_resource_versions", message.initial_resource_versions.values(), limits)
    if (type_ := TYPES_BY_URL.get(message.type_url)) is None:
        return None
    initial_versions = message.initial_resource_versions
    return XdsRequest(
        type=type_,
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
        # Many streams subscribe to the same names; interning keeps one string for all of them.
        subscribe=frozenset(map(sys.intern, message.resource_names_subscribe)),
        unsubscribe=frozenset(message.resource_names_unsubscribe),
        initial_versions={
            sys.intern(name): Version(sys.intern(initial_versions[name]))
            for name in initial_versions
        },
    )
