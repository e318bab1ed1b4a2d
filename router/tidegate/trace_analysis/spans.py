"""Spans and traces as values, read from the JSON of Jaeger's query API.

Spans follow the current conventions of OpenTelemetry, or older ones, or are Envoy's. The functions
here hide that difference.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

__all__ = [
    "GRPC_CODES",
    "Link",
    "Span",
    "Trace",
    "has_status",
    "read_trace",
    "short_operation",
    "status_of",
    "subset_of",
]

GRPC_CODES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
"""The names of gRPC's status codes, by number."""

# By the conventions that our spans follow, by those before 1.38, and Envoy's.
_GRPC_STATUSES: Final = ("rpc.response.status_code", "rpc.grpc.status_code", "grpc.status_code")
_HTTP_STATUSES: Final = ("http.response.status_code", "http.status_code")
_HTTP_ERROR: Final = 400
_GRPC_METHOD: Final = re.compile(r"/?(?:[A-Za-z]\w*\.)+([A-Za-z]\w*/[A-Za-z]\w*)", re.ASCII)
_EGRESS: Final = re.compile(r"router .* egress")
_CLUSTER: Final = re.compile(r"(outbound|inbound)\|(\d*)\|([^|]*)\|([^|\s]*)")


@dataclass(frozen=True, slots=True)
class Link:
    """A link from a span to a span of another trace.

    Attributes:
        trace_id: The other trace's id, in hexadecimal digits.
        span_id: The other span's id.
    """

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A span.

    Attributes:
        span_id: The span's id, in hexadecimal digits.
        parent_id: The id of its parent, empty for a root.
        service: The service.
        operation: The name of the span.
        start_us: Start time, in microseconds since 1970.
        duration_us: Duration, in microseconds.
        tags: Tag values, by key.
        process: What the processes of one trace differ in; spans of one process share a clock.
        host: The host that the process runs on; empty if it does not say.
        links: The spans of other traces that it is linked to.
    """

    span_id: str
    parent_id: str
    service: str
    operation: str
    start_us: int
    duration_us: int
    tags: Mapping[str, object]
    process: str = ""
    host: str = ""
    links: tuple[Link, ...] = ()

    @property
    def is_error(self) -> bool:
        """Whether the span failed."""
        return self.tags.get("error") in (True, "true")

    @property
    def kind(self) -> str:
        """Jaeger's name of the span's kind, such as ``server``; empty if it has none."""
        return str(self.tags.get("span.kind", ""))


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace.

    Attributes:
        trace_id: The trace's id, in hexadecimal digits.
        spans: All spans, in the order of their start times.
    """

    trace_id: str
    spans: tuple[Span, ...]

    @property
    def start_us(self) -> int:
        """Start of the first span, in microseconds since 1970."""
        return min((span.start_us for span in self.spans), default=0)

    @property
    def duration_us(self) -> int:
        """Time from the start of the first span to the end of the last, in microseconds."""
        ends = (span.start_us + span.duration_us for span in self.spans)
        return max(ends, default=0) - self.start_us


def read_trace(trace: Mapping[str, Any]) -> Trace:
    """Parses an element of ``data`` in a response of Jaeger's API.

    Args:
        trace: The element.

    Raises:
        AttributeError: A field has another type.
        KeyError: A required field is missing.
        TypeError: A field has another type.
        ValueError: A number is malformed.
    """
    trace_id = str(trace["traceID"])
    processes = {
        name: (str(process.get("serviceName", "")), _host(process.get("tags") or ()))
        for name, process in trace["processes"].items()
    }
    spans = [_read_span(span, trace_id, processes) for span in trace["spans"]]
    spans.sort(key=lambda span: span.start_us)
    return Trace(trace_id, tuple(spans))


@lru_cache(maxsize=4096)
def short_operation(name: str) -> str:
    """Returns the name of a span without what takes much room and helps little.

    A gRPC method loses its package. The name of an upstream attempt loses the cluster, so that the
    attempts at all versions have one name.

    Args:
        name: The name.
    """
    method = _GRPC_METHOD.fullmatch(name)
    if method:
        return method[1]
    return "router egress" if _EGRESS.fullmatch(name) else name


def has_status(span: Span) -> bool:
    """Whether a span says which status its call had, also if it was a good one."""
    tags = span.tags
    return any(
        str(tags.get(key, "")) not in ("", "-") for key in (*_GRPC_STATUSES, *_HTTP_STATUSES)
    )


def status_of(span: Span) -> str:
    """Returns the status of a span's call: a code of gRPC, ``HTTP 503``, ``ERROR``, or ``OK``."""
    for key in _GRPC_STATUSES:
        value = span.tags.get(key)
        if value is not None and str(value) not in ("", "-"):
            text = str(value)
            return GRPC_CODES[int(text)] if _is_grpc_number(text) else text
    for key in _HTTP_STATUSES:
        text = str(span.tags.get(key, ""))
        if text.isdecimal() and int(text) >= _HTTP_ERROR:
            return f"HTTP {text}"
    return "ERROR" if span.is_error else "OK"


def subset_of(span: Span) -> str:
    """Returns the subset that Envoy chose for the call of a span; empty if it says none."""
    found = _CLUSTER.fullmatch(str(span.tags.get("upstream_cluster", "")))
    return found[3] if found else ""


def _is_grpc_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < len(GRPC_CODES)


def _host(tags: Any) -> str:
    hosts = (tag["value"] for tag in tags if tag.get("key") in ("host.name", "hostname"))
    return str(next(hosts, ""))


def _read_span(
    span: Mapping[str, Any], trace_id: str, processes: Mapping[str, tuple[str, str]]
) -> Span:
    parent, links = "", []
    for each in span["references"] or ():
        if each.get("refType") == "CHILD_OF" and not parent:
            parent = str(each["spanID"])
        elif each.get("refType") == "FOLLOWS_FROM":
            links.append(Link(str(each.get("traceID", trace_id)), str(each["spanID"])))
    process = str(span["processID"])
    service, host = processes.get(process, ("", ""))
    return Span(
        span_id=str(span["spanID"]),
        parent_id=parent,
        service=service,
        operation=str(span["operationName"]),
        start_us=int(span["startTime"]),
        duration_us=max(0, int(span["duration"])),
        tags={str(tag["key"]): tag["value"] for tag in span["tags"]},
        process=process,
        host=host,
        links=tuple(links),
    )
