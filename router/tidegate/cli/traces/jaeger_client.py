"""Reads traces over Jaeger's query HTTP API, from the controller or from any Jaeger.

Jaeger before version 2.19 has no summaries, and Jaeger after 2.20 has no search for whole traces.
The client tries the newer endpoint first. Jaeger answers an unknown path with the page of its UI,
so the client treats a response that is not JSON as a missing endpoint.
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

import typer

from tidegate.mesh.traces.errors import TraceNotFoundError, TracesError, TracesUnreachableError
from tidegate.trace_analysis.spans import Trace, read_trace

__all__ = ["DEFAULT_URL", "JaegerClient", "TraceLine", "TraceSearch", "UrlOption", "now_us"]

DEFAULT_URL: Final = "http://127.0.0.1:16686"
"""The URL of a controller or a Jaeger on this machine."""

UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="TIDEGATE_TRACES_URL",
        help="URL of the query API of the controller or of a Jaeger.",
        metavar="URL",
    ),
]

_TIMEOUT_S: Final = 10.0
# Whole traces of many calls are megabytes.
_WHOLE_TIMEOUT_S: Final = 60.0
_CONNECTIONS: Final = 8
_TRACE_ID_DIGITS: Final = 32
# How many of the newest traces are searched for the beginning of an id.
_ID_SEARCH_LIMIT: Final = 1_000
_MAX_RESPONSE_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSearch:
    """A search for traces.

    Attributes:
        service: Service of one of the spans. Empty for any.
        operation: Name of one of the spans. Empty for any.
        min_duration: Shortest duration of one of the spans, such as ``100ms``.
        limit: Most traces to return.
    """

    service: str = ""
    operation: str = ""
    min_duration: str = ""
    limit: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLine:
    """A trace in one line.

    Attributes:
        trace_id: 32 hexadecimal digits.
        service: Service of the root span.
        operation: Name of the root span.
        start_us: Start time, in microseconds since 1970.
        duration_us: Duration, in microseconds.
        spans: Number of spans.
        errors: Number of spans that failed.
    """

    trace_id: str
    service: str
    operation: str
    start_us: int
    duration_us: int
    spans: int
    errors: int


class _NoEndpointError(TracesError):
    """The server has no such endpoint."""


class JaegerClient:
    """A client of one server.

    Args:
        url: The server's URL, for example ``http://127.0.0.1:16686``, with its base path if any.

    Raises:
        TracesError: The URL is malformed.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise TracesError(f"{url!r} is not a URL; pass for example {DEFAULT_URL}")
        self._url = url.rstrip("/")

    def search(self, wanted: TraceSearch) -> tuple[TraceLine, ...]:
        """Returns the newest traces that match, the newest first.

        Raises:
            TracesUnreachableError: No server answers.
            TracesError: The server refuses the request, or its response cannot be parsed.
        """
        try:
            lines = self._summaries(wanted)
        except _NoEndpointError:
            lines = self._search_traces(wanted)
        newest_first = sorted(lines, key=lambda line: line.start_us, reverse=True)
        return tuple(newest_first[: wanted.limit])

    def services(self) -> tuple[str, ...]:
        """Returns the services that have sent spans, sorted. Raises as `search` does."""
        return tuple(sorted(map(str, self._data("/api/services"))))

    def whole_traces(
        self, service: str, start_us: int, end_us: int, limit: int
    ) -> tuple[Trace, ...]:
        """Returns traces in which a span of a service began in a period. Raises as `search` does.

        Args:
            service: The service.
            start_us: Start of the period, in microseconds since 1970.
            end_us: Its end, which belongs to it.
            limit: Most traces to return. Which of more are returned depends on the server.
        """
        query = {
            "service": service,
            "start": str(start_us),
            "end": str(end_us),
            "limit": str(limit),
        }
        try:
            answer = self._get("/api/traces", query, _WHOLE_TIMEOUT_S)
        except _NoEndpointError:
            return self._traces_by_summaries(service, start_us, end_us, limit)
        return tuple(self.read(each) for each in answer.get("data") or ())

    def trace_object(self, trace_id: str) -> dict[str, Any]:
        """Returns a trace in Jaeger's JSON.

        Args:
            trace_id: The trace's id, a beginning of it that is unique among the newest traces, or
                ``last``.

        Raises:
            TraceNotFoundError: No trace matches, or several do.
            TracesUnreachableError: No server answers.
            TracesError: The response cannot be parsed.
        """
        full_id = self._full_id(trace_id)
        path = f"/api/traces/{urllib.parse.quote(full_id, safe='')}"
        found = self._data(path, missing=f"there is no trace {full_id} at {self._url}")
        if not found or not isinstance(found[0], dict):
            raise TraceNotFoundError(f"there is no trace {full_id} at {self._url}")
        return found[0]

    def read(self, trace: Mapping[str, Any]) -> Trace:
        """Parses a trace from `trace_object`.

        Raises:
            TracesError: It does not have the form of Jaeger's traces.
        """
        try:
            return read_trace(trace)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable() from error

    def _full_id(self, trace_id: str) -> str:
        if trace_id == "last":
            newest = self.search(TraceSearch(limit=1))
            if not newest:
                raise TraceNotFoundError(f"there are no traces at {self._url} yet")
            return newest[0].trace_id
        if len(trace_id) >= _TRACE_ID_DIGITS:
            return trace_id
        matches = [
            line.trace_id
            for line in self.search(TraceSearch(limit=_ID_SEARCH_LIMIT))
            if line.trace_id.startswith(trace_id.lower())
        ]
        if len(matches) > 1:
            raise TraceNotFoundError(
                f"{len(matches)} traces begin with {trace_id!r}, such as {matches[0]} and"
                f" {matches[1]}; give a longer part of the id"
            )
        # Jaeger also finds ids without their leading zeros.
        return matches[0] if matches else trace_id

    def _traces_by_summaries(
        self, service: str, start_us: int, end_us: int, limit: int
    ) -> tuple[Trace, ...]:
        period = _rfc_3339(start_us), _rfc_3339(end_us)
        lines = self._summaries(TraceSearch(service=service, limit=limit), period)

        def whole(line: TraceLine) -> tuple[Trace, ...]:
            # A trace may have been evicted meanwhile.
            try:
                return (self.read(self.trace_object(line.trace_id)),)
            except TraceNotFoundError:
                return ()

        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            return tuple(trace for found in threads.map(whole, lines) for trace in found)

    def _summaries(
        self, search: TraceSearch, period: tuple[str, str] | None = None
    ) -> list[TraceLine]:
        start, end = period or ("1970-01-01T00:00:00Z", _rfc_3339(now_us()))
        query = {
            "query.serviceName": search.service,
            "query.operationName": search.operation,
            "query.durationMin": search.min_duration,
            "query.searchDepth": str(search.limit),
            "query.startTimeMin": start,
            "query.startTimeMax": end,
        }
        answer = self._get("/api/v3/trace-summaries", query)
        try:
            return [_line_of_summary(each) for each in answer.get("summaries") or ()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable() from error

    def _search_traces(self, search: TraceSearch) -> list[TraceLine]:
        # Older versions of Jaeger require a service.
        services = [search.service] if search.service else self._data("/api/services")
        query = {
            "operation": search.operation,
            "minDuration": search.min_duration,
            "limit": str(search.limit),
            "start": "0",
            "end": str(now_us()),
        }
        lines = {}
        for service in services:
            for found in self._data("/api/traces", {**query, "service": str(service)}):
                line = _line_of_trace(self.read(found))
                lines[line.trace_id] = line
        return list(lines.values())

    def _data(
        self, path: str, query: Mapping[str, str] | None = None, *, missing: str = ""
    ) -> list[Any]:
        try:
            answer = self._get(path, query or {})
        except _NoEndpointError as error:
            if missing:
                raise TraceNotFoundError(missing) from error
            raise TracesError(f"{self._url} does not respond like a Jaeger: {error}") from error
        data = answer.get("data")
        return data if isinstance(data, list) else []

    def _get(
        self, path: str, query: Mapping[str, str], timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        given = urllib.parse.urlencode({key: value for key, value in query.items() if value})
        url = f"{self._url}{path}{'?' if given else ''}{given}"
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  # checked
                body = answer.read(_MAX_RESPONSE_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                text = _message(error.read(_MAX_RESPONSE_BYTES)) or str(error.reason)
            if error.code == HTTPStatus.NOT_FOUND:
                raise _NoEndpointError(f"{path}: {text}") from error
            raise TracesError(f"{self._url} refused the request: {text}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            cause = getattr(reason, "strerror", None) or reason
            raise TracesUnreachableError(f"cannot read traces from {self._url}: {cause}") from error
        try:
            value = json.loads(body)
        except ValueError as error:
            raise _NoEndpointError(f"{path}: the response is not JSON") from error
        if not isinstance(value, dict):
            raise self._unreadable()
        return value

    def _unreadable(self) -> TracesError:
        return TracesError(f"the response of {self._url} does not have Jaeger's form")


def now_us() -> int:
    """Returns the time, in microseconds since 1970."""
    return int(datetime.now(UTC).timestamp() * 1e6)


def _rfc_3339(time_us: int) -> str:
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    return instant.isoformat().replace("+00:00", "Z")


def _line_of_summary(summary: Mapping[str, Any]) -> TraceLine:
    start_us = int(summary["minStartTimeUnixNano"]) // 1000
    return TraceLine(
        trace_id=str(summary["traceId"]),
        service=str(summary.get("rootServiceName", "")),
        operation=str(summary.get("rootOperationName", "")),
        start_us=start_us,
        duration_us=int(summary["maxEndTimeUnixNano"]) // 1000 - start_us,
        spans=int(summary.get("spanCount", 0)),
        errors=int(summary.get("errorSpanCount", 0)),
    )


def _line_of_trace(trace: Trace) -> TraceLine:
    root = next((span for span in trace.spans if not span.parent_id), None)
    root = root or (trace.spans[0] if trace.spans else None)
    return TraceLine(
        trace_id=trace.trace_id,
        service=root.service if root else "",
        operation=root.operation if root else "",
        start_us=trace.start_us,
        duration_us=trace.duration_us,
        spans=len(trace.spans),
        errors=sum(span.is_error for span in trace.spans),
    )


def _message(body: bytes) -> str:
    """Returns the message of an error of either generation of the API."""
    try:
        value = json.loads(body)
        if "error" in value:
            return str(value["error"]["message"])
        return "; ".join(str(error["msg"]) for error in value["errors"])
    except (KeyError, TypeError, ValueError):
        return ""
