"""Prometheus metrics about the RPCs of every server.

Names, labels and codes are those of the gRPC ecosystem (go-grpc-middleware's ``grpc_server_*``,
codes written as in Go: ``OK``, ``ResourceExhausted``), so that existing dashboards and alerts
fit. Labels are bounded: a method that no service registered counts as ``other``. The collectors
live in the default registry, beside those of engines such as vLLM, which keep their names.

Every method has a series for every code from the start, at 0. Prometheus takes the first value of a
series as its start: if a series appeared with its first failure, ``rate()`` would miss that
failure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from prometheus_client import Counter, Gauge, Histogram

from tidegate.chassis.errors import STATUS_CODES

__all__ = [
    "CODES",
    "MethodMetrics",
    "RequestCounters",
    "code_label",
    "method_metrics",
]

CODES: Final = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, *STATUS_CODES.values())
"""The codes that calls end with: OK, CANCELLED for clients that leave, and those of our errors."""

# From a cache hit to a long generation.
_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_METHOD: Final = ("grpc_type", "grpc_service", "grpc_method")

_STARTED = Counter("grpc_server_started_total", "RPCs begun.", _METHOD)
_HANDLED = Counter("grpc_server_handled_total", "RPCs ended, by code.", (*_METHOD, "grpc_code"))
_SECONDS = Histogram(
    "grpc_server_handling_seconds", "Time from begin to end of RPCs.", _METHOD, buckets=_BUCKETS_S
)
_RECEIVED = Counter("grpc_server_msg_received_total", "Messages received on streams.", _METHOD)
_SENT = Counter("grpc_server_msg_sent_total", "Messages sent on streams.", _METHOD)
_IN_FLIGHT = Gauge("grpc_server_in_flight_rpcs", "RPCs running now.", _METHOD)

_REQUESTS = Counter(
    "tidegate_requests_total",
    "Requests ended, by the model version that answered and by code. Requests on a client's stream"
    " count one by one.",
    # Not `version`, which pods have as a label: Prometheus would make ours `exported_version`.
    ("model", "model_version", "grpc_service", "grpc_method", "grpc_code"),
)

_CODE_LABELS: Final = {
    code: "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
    for code in grpc.StatusCode
} | {grpc.StatusCode.CANCELLED: "Canceled"}


def code_label(code: grpc.StatusCode) -> str:
    """Writes a status code as Go does: ``OK``, ``NotFound``, ``Canceled``."""
    return _CODE_LABELS[code]


@dataclass(frozen=True, slots=True)
class MethodMetrics:
    """The collectors of one method with their labels bound, so that no call looks them up.

    Attributes:
        started: RPCs begun.
        in_flight: RPCs running now.
        seconds: Durations of RPCs, in seconds.
        received: Messages received, counted for client streams.
        sent: Messages sent, counted for server streams.
        ended: RPCs ended, by code.
        labels: Values of grpc_type, grpc_service and grpc_method.
    """

    started: Counter
    in_flight: Gauge
    seconds: Histogram
    received: Counter
    sent: Counter
    ended: Mapping[grpc.StatusCode, Counter]
    labels: tuple[str, str, str]

    def began(self) -> None:
        """Counts the start of an RPC."""
        self.started.inc()
        self.in_flight.inc()

    def handled(
        self, code: grpc.StatusCode, seconds: float, requests: "Iterable[RequestCounters]"
    ) -> None:
        """Counts the end of an RPC.

        Args:
            code: Code that the RPC ended with.
            seconds: Duration of the RPC.
            requests: Counters of the requests that ended with the RPC.
        """
        for each in requests:
            each.count(code)
        counter = self.ended.get(code) or _HANDLED.labels(*self.labels, code_label(code))
        counter.inc()
        self.seconds.observe(seconds)
        self.in_flight.dec()


def method_metrics(kind: str, service: str, method: str) -> MethodMetrics:
    """Binds the collectors of one method.

    Args:
        kind: ``unary``, ``client_stream``, ``server_stream`` or ``bidi_stream``.
        service: Full name of the service, or ``other``.
        method: Name of the method, or ``other``.
    """
    labels = (kind, service, method)
    return MethodMetrics(
        started=_STARTED.labels(*labels),
        in_flight=_IN_FLIGHT.labels(*labels),
        seconds=_SECONDS.labels(*labels),
        received=_RECEIVED.labels(*labels),
        sent=_SENT.labels(*labels),
        ended={code: _HANDLED.labels(*labels, code_label(code)) for code in CODES},
        labels=labels,
    )


class RequestCounters:
    """Counts the requests of one method that one model version answers, by code.

    Args:
        model: Name of the model; empty for requests that no model answers.
        model_version: Version of the model.
        path: ``/service/method``.
    """

    __slots__ = ("_by_code", "_is_removed", "_labels")

    def __init__(self, model: str, model_version: str, path: str) -> None:
        service, _, method = path.removeprefix("/").rpartition("/")
        self._labels = (model, model_version, service, method)
        self._by_code: dict[grpc.StatusCode, Counter] = {}
        self._is_removed = False

    def bind(self) -> None:
        """Creates the series of every code, at 0 where they do not exist."""
        self._by_code = {code: self._counter(code) for code in CODES}

    def count(self, code: grpc.StatusCode) -> None:
        """Counts a request that has ended."""
        counter = self._by_code.get(code)
        if counter is None and not self._is_removed:
            # A handler may end a call with a code that is not in `CODES`.
            counter = self._counter(code)
        if counter is not None:
            counter.inc()

    def remove(self) -> None:
        """Removes the series; later counts create none."""
        self._is_removed = True
        labels = ("model", "model_version", "grpc_service", "grpc_method")
        _REQUESTS.remove_by_labels(dict(zip(labels, self._labels, strict=True)))

    def _counter(self, code: grpc.StatusCode) -> Counter:
        return _REQUESTS.labels(*self._labels, code_label(code))
