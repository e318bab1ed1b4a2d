"""Prometheus metrics of the discovery service."""

from prometheus_client import Counter, Gauge, Histogram

from tidegate.mesh.ads.status import XdsVariant
from tidegate.mesh.resources import ProxyKind, ResourceType

__all__ = ["IGNORED_REQUESTS", "REFUSED_STREAMS", "StreamMetrics"]

# From a proxy on the same machine to one that warms a thousand clusters.
_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)

_proxies = Gauge("tidegate_xds_proxies", "Open streams of proxies.", ("proxy_kind", "protocol"))
_pushes = Counter("tidegate_xds_pushes", "Responses sent to proxies.", ("proxy_kind", "type"))
_push_bytes = Counter(
    "tidegate_xds_push_bytes", "Size of the responses sent to proxies.", ("proxy_kind", "type")
)
_nacks = Counter(
    "tidegate_xds_nacks", "Responses that proxies rejected (NACK).", ("proxy_kind", "type")
)
_ack_seconds = Histogram(
    "tidegate_xds_ack_seconds",
    "Time from writing a response to the proxy's ACK or NACK.",
    ("proxy_kind", "type"),
    buckets=_BUCKETS_S,
)

IGNORED_REQUESTS = Counter(
    "tidegate_xds_ignored_requests", "Requests for a resource type that is not served."
)
REFUSED_STREAMS = Counter(
    "tidegate_xds_refused_streams",
    "Streams that the server ended because of their requests.",
    ("reason",),
)

# Start each series at 0: `rate()` misses the first event of a series that starts at 1.
for _reason in ("silent", "too_many_streams", "refused_request"):
    REFUSED_STREAMS.labels(_reason)
for _proxy_kind in ProxyKind:
    for _type in ResourceType:
        for _counter in (_pushes, _push_bytes, _nacks):
            _counter.labels(_proxy_kind.value, _type.name.lower())


class StreamMetrics:
    """The metrics of one stream.

    Args:
        proxy_kind: The proxy kind.
        variant: The xDS variant that the proxy speaks.
    """

    def __init__(self, proxy_kind: ProxyKind, variant: XdsVariant) -> None:
        self._proxy_kind = proxy_kind.value
        self.proxies = _proxies.labels(proxy_kind.value, variant.name.lower())

    def response_sent(self, type_: ResourceType, size_bytes: int) -> None:
        """Counts a response that was written."""
        labels = (self._proxy_kind, type_.name.lower())
        _pushes.labels(*labels).inc()
        _push_bytes.labels(*labels).inc(size_bytes)

    def ack_received(self, type_: ResourceType, seconds: float, *, accepted: bool) -> None:
        """Counts the ACK or NACK of a response."""
        labels = (self._proxy_kind, type_.name.lower())
        _ack_seconds.labels(*labels).observe(seconds)
        if not accepted:
            _nacks.labels(*labels).inc()
