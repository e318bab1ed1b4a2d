"""Istio's standard metrics, computed from the request log, so that Istio's dashboards work.

Names, labels and buckets are those of Istio's proxies (https://istio.io/latest/docs/reference/config/metrics/),
with ``reporter="source"``, as a gateway reports. An unknown value is ``unknown``, as in Istio.

Labels are bounded. They come from the mesh's own objects and from the endpoint's workload, never
from a client. A call to an authority without a route has ``unknown`` labels. A method has its own
name once a server has answered it with a status other than UNIMPLEMENTED, otherwise ``other``. If
someone feeds invented clusters into the access log, label sets beyond `MAX_LABEL_SETS` have
``unknown`` in every label.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

import grpc
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from tidegate.istio.names import CANONICAL_NAME_LABELS, CANONICAL_REVISION_LABELS
from tidegate.mesh.telemetry.request_log import RequestLog
from tidegate.mesh.telemetry.request_record import RequestRecord

__all__ = ["MAX_LABEL_SETS", "IstioMetrics", "IstioWorkload", "WorkloadLookup"]

MAX_LABEL_SETS: Final = 2_000
"""Most combinations of label values."""

_UNKNOWN: Final = "unknown"
_OTHER: Final = "other"
_LABELS: Final = (
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
)
# Envoy's default buckets, which Istio's proxies use for times and for sizes alike.
_BUCKETS: Final = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000),
    *(30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000),
)
_FIRST_BYTE_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
# istiod's default name for a single Kubernetes cluster.
_CLUSTER: Final = "Kubernetes"
_QUEUE_CAPACITY: Final = 50_000
_MAX_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class IstioWorkload:
    """The workload behind an endpoint, as Istio's metrics name it.

    Attributes:
        name: The workload, such as a Deployment.
        namespace: Its namespace.
        app: Its label ``app``.
        version: Its label ``version``.
        canonical_service: Its name in Kiali's graph.
        canonical_revision: Its version in Kiali's graph.
    """

    name: str = _UNKNOWN
    namespace: str = _UNKNOWN
    app: str = _UNKNOWN
    version: str = _UNKNOWN
    canonical_service: str = _UNKNOWN
    canonical_revision: str = _UNKNOWN

    @classmethod
    def from_labels(cls, name: str, namespace: str, labels: Mapping[str, str]) -> Self:
        """Names a workload as Istio does, by the first label of each kind that it has.

        Args:
            name: The workload.
            namespace: Its namespace.
            labels: Its labels.
        """
        return cls(
            name=name,
            namespace=namespace,
            app=labels.get("app", _UNKNOWN),
            version=labels.get("version", _UNKNOWN),
            canonical_service=_first_of(labels, CANONICAL_NAME_LABELS, name),
            canonical_revision=_first_of(labels, CANONICAL_REVISION_LABELS, "latest"),
        )


WorkloadLookup = Callable[[str, float], IstioWorkload | None]
"""Returns the workload at an ``address:port`` and a time in seconds since 1970, None if unknown."""


@dataclass(frozen=True, slots=True)
class _Series:
    """The collectors, or their children for one set of labels, which saves a lookup per request."""

    requests: Counter
    duration_ms: Histogram
    request_bytes: Histogram
    response_bytes: Histogram
    request_messages: Counter
    response_messages: Counter

    def with_labels(self, labels: tuple[str, ...]) -> "_Series":
        return _Series(
            self.requests.labels(*labels),
            self.duration_ms.labels(*labels),
            self.request_bytes.labels(*labels),
            self.response_bytes.labels(*labels),
            self.request_messages.labels(*labels),
            self.response_messages.labels(*labels),
        )

    def observe(self, record: RequestRecord) -> None:
        self.requests.inc()
        self.duration_ms.observe(record.duration_s * 1000)
        self.request_bytes.observe(record.request_bytes)
        self.response_bytes.observe(record.response_bytes)
        if record.is_grpc:
            self.request_messages.inc(record.request_messages or 0)
            self.response_messages.inc(record.response_messages or 0)


class IstioMetrics:
    """Counts requests as an Istio gateway would.

    Args:
        workload_at: Returns the workload that ran at an endpoint when a request began.
        source_of: Returns the workload whose proxy logged a request.
        registry: Where the collectors are registered. By default beside those of the chassis.
    """

    def __init__(
        self,
        workload_at: WorkloadLookup,
        source_of: Callable[[RequestRecord], IstioWorkload],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._workload_at = workload_at
        self._source_of = source_of
        self._series: dict[tuple[str, ...], _Series] = {}
        self._methods: dict[tuple[str, str, str], Histogram] = {}

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABELS, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, _LABELS, registry=registry, buckets=_BUCKETS)

        self._collectors = _Series(
            requests=counter("istio_requests_total", "Finished requests."),
            duration_ms=histogram("istio_request_duration_milliseconds", "Duration of requests."),
            request_bytes=histogram("istio_request_bytes", "Sizes of request bodies."),
            response_bytes=histogram("istio_response_bytes", "Sizes of response bodies."),
            request_messages=counter(
                "istio_request_messages_total", "gRPC messages sent by clients."
            ),
            response_messages=counter(
                "istio_response_messages_total", "gRPC messages sent by servers."
            ),
        )
        self._first_byte = Histogram(
            "tidegate_mesh_time_to_first_byte_seconds",
            "Time from a request's arrival to the first byte of the endpoint's answer.",
            ("host", "subset", "method"),
            registry=registry,
            buckets=_FIRST_BYTE_BUCKETS_S,
        )

    async def follow(self, log: RequestLog) -> None:
        """Counts every request of a log until it is cancelled."""
        with log.subscribe("metrics", capacity=_QUEUE_CAPACITY, max_wait_s=_MAX_WAIT_S) as records:
            async for record in records:
                self.observe(record)

    def observe(self, record: RequestRecord) -> None:
        """Counts one request."""
        self._series_of(self._label_values(record)).observe(record)
        if record.time_to_first_byte_s is not None:
            self._first_byte_of(record).observe(record.time_to_first_byte_s)

    def _series_of(self, labels: tuple[str, ...]) -> _Series:
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= MAX_LABEL_SETS:
                labels = (_UNKNOWN,) * len(_LABELS)
            series = self._series[labels] = self._collectors.with_labels(labels)
        return series

    def _first_byte_of(self, record: RequestRecord) -> Histogram:
        known = bool(record.method) and record.grpc_status is not grpc.StatusCode.UNIMPLEMENTED
        method = f"{record.service}/{record.method}" if known else _OTHER
        labels = (record.host or _UNKNOWN, record.subset, method)
        bound = self._methods.get(labels)
        if bound is None:
            if len(self._methods) >= MAX_LABEL_SETS:
                labels = (_UNKNOWN, "", _OTHER)
            bound = self._methods[labels] = self._first_byte.labels(*labels)
        return bound

    def _label_values(self, record: RequestRecord) -> tuple[str, ...]:
        found = None
        if record.upstream_address:
            found = self._workload_at(record.upstream_address, record.start_time_s)
        workload = IstioWorkload() if found is None else found
        service_name, namespace = _service_of(record.host, workload.namespace)
        status = "" if record.grpc_status is None else str(record.grpc_status.value[0])
        return (
            "source",
            *_values_of(self._source_of(record)),
            *_values_of(workload),
            *(record.host or _UNKNOWN, service_name, namespace),
            "grpc" if record.is_grpc else "http",
            str(record.http_status),
            status,
            ",".join(record.response_flags) or "-",
            # connection_security_policy: a client-side proxy does not know it (Istio's rule).
            _UNKNOWN,
        )


def _values_of(workload: IstioWorkload) -> tuple[str, ...]:
    return (
        *(workload.name, workload.namespace, _UNKNOWN, workload.app, workload.version),
        *(_CLUSTER, workload.canonical_service, workload.canonical_revision),
    )


def _service_of(host: str, endpoints_namespace: str) -> tuple[str, str]:
    """Returns the name and namespace of a service, read from a Kubernetes host name.

    Any other host is in the namespace of its ServiceEntry, as are its endpoints.
    """
    parts = host.split(".")
    if len(parts) >= 3 and parts[2] == "svc":
        return parts[0], parts[1]
    return (host, endpoints_namespace) if host else (_UNKNOWN, _UNKNOWN)


def _first_of(labels: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    return next((labels[name] for name in names if name in labels), default)
