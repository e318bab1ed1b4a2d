"""The aggregated discovery service: resources on their way to proxies, and their answers.

    distribution = Distribution()
    AdsServicer(distribution).register(server)
    distribution.apply(ProxyKind.ENVOY, Change(put=resources))
    report = await distribution.acknowledged({ProxyKind.ENVOY: keys}, deadline_s=10)

From the bottom up: `world` is what should be served; `subscription`, `watched` and `stream` are
the protocol as state machines without I/O, and `sotw` and `delta` its two dialects; `distribution`
brings worlds and streams together, `ack_waiter` waits for their answers, and `servicer` is the thin
shell over grpc.aio.
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
