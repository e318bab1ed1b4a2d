"""The aggregated discovery service (ADS): sends resources to proxies and tracks their ACKs.

    distribution = Distribution()
    AdsServicer(distribution).register(server)
    distribution.apply(ProxyKind.ENVOY, Change(put=resources))
    report = await distribution.acknowledged({ProxyKind.ENVOY: keys}, deadline_s=10)

The modules, from the bottom up:

- `snapshot` holds the resources of each proxy kind.
- `subscription`, `watched_type` and `stream` are the xDS protocol as state machines without I/O.
- `variant`, `sotw` and `delta` hold what differs between the two variants of the protocol.
- `connections` and `distribution` pass each change to the streams that subscribe to it.
- `ack_waiter` waits until proxies have acknowledged resources.
- `servicer` connects a `Distribution` to grpc.aio.
"""

from tidegate.mesh.ads.distribution import Distribution
from tidegate.mesh.ads.errors import AdsError, RefusedRequestError
from tidegate.mesh.ads.servicer import AdsServicer
from tidegate.mesh.ads.status import (
    AckOutcome,
    AckReport,
    NodeId,
    ProxyAck,
    ProxyId,
    ProxyStatus,
    Rejection,
    TypeStatus,
    XdsVariant,
)
from tidegate.mesh.ads.variant import ProxyLimits

__all__ = [
    "AckOutcome",
    "AckReport",
    "AdsError",
    "AdsServicer",
    "Distribution",
    "NodeId",
    "ProxyAck",
    "ProxyId",
    "ProxyLimits",
    "ProxyStatus",
    "RefusedRequestError",
    "Rejection",
    "TypeStatus",
    "XdsVariant",
]
