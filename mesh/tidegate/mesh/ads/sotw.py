"""The state-of-the-world (SOTW) variant of xDS: every request names the whole subscription.

Responses of clusters, scopes and listeners hold every resource subscribed to; the proxy removes
what they lack. Responses of the other types hold what has changed, and cannot report removals. The
server ignores a request whose nonce is not the newest: the proxy sends another request when it has
read the newer response.
"""

import hashlib
import sys
from typing import Final

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tidegate.mesh.ads.status import XdsVariant
from tidegate.mesh.ads.subscription import SubscriptionDelta
from tidegate.mesh.ads.variant import TYPES_BY_URL, ProxyLimits, XdsRequest, check_names
from tidegate.mesh.ads.watched_type import ProtocolTraits, WatchedType, XdsResponse
from tidegate.mesh.resources import ResourceType

__all__ = ["SotwRules", "read_sotw"]

_FULL_STATE_TYPES: Final = frozenset(
    {ResourceType.CLUSTER, ResourceType.SCOPED_ROUTE, ResourceType.LISTENER}
)
_CONTROL_PLANE: Final = base_pb2.ControlPlane(identifier="tidegate")


class SotwRules:
    """The rules of ``StreamAggregatedResources``. Implements `VariantRules`."""

    variant: Final = XdsVariant.SOTW

    def traits(self, type: ResourceType) -> ProtocolTraits:  # noqa: A002
        """See `VariantRules`."""
        return ProtocolTraits(full_state=type in _FULL_STATE_TYPES, reports_absence=False)

    def is_stale(self, watched: WatchedType, request: XdsRequest) -> bool:
        """See `VariantRules`. A new stream accepts any nonce: it may be from the last stream."""
        return bool(watched.nonce) and request.nonce != watched.nonce

    def update_subscription(self, watched: WatchedType, request: XdsRequest) -> SubscriptionDelta:
        """See `VariantRules`."""
        return watched.subscription.replace(request.subscribe)

    def encode(self, response: XdsResponse) -> discovery_pb2.DiscoveryResponse:
        """See `VariantRules`. The version is a digest of the resources' versions."""
        digest = hashlib.blake2b(digest_size=8)
        for each in response.resources:
            digest.update(f"{each.key.name}\0{each.version}\0".encode())
        return discovery_pb2.DiscoveryResponse(
            version_info=digest.hexdigest(),
            resources=[each.body for each in response.resources],
            type_url=response.type.url,
            nonce=response.nonce,
            control_plane=_CONTROL_PLANE,
        )


def read_sotw(message: discovery_pb2.DiscoveryRequest, limits: ProxyLimits) -> XdsRequest | None:
    """Reads a request.

    Returns:
        The request, or None for a resource type that is not served.

    Raises:
        RefusedRequestError: It asks for more than the limits allow.
    """
    check_names("resource_names", message.resource_names, limits)
    if (type_ := TYPES_BY_URL.get(message.type_url)) is None:
        return None
    return XdsRequest(
        type=type_,
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
        # Many streams subscribe to the same names; interning keeps one string for all of them.
        subscribe=frozenset(map(sys.intern, message.resource_names)),
    )
