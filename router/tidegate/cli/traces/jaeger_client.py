"""Reads traces over Jaeger's query HTTP API: the controller's, or any Jaeger's.

Jaegers from before version 2.19 have no summaries and from after 2.20 no search for whole traces;
both are asked here, the newer way first. Such a Jaeger answers an address that it does not know
with the page of its UI, so what is not JSON counts as not there.
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from tidegate.cli.traces.span_tree import TraceView, read_trace
from tidegate.mesh.traces.errors import TraceNotFoundError, TracesError, TracesUnreachableError

__all__ = ["DEFAULT_URL", "JaegerClient", "TraceLine", "TraceSearch"]

DEFAULT_URL: Final = "http://127.0.0.1:16686"
"""Where a controller, or a Jaeger, on this machine is."""

_TIMEOUT_S: Final = 10.0
_TRACE_ID_DIGITS: Final = 32
# How many of the newest traces a beginning of an id is looked for in.
_SEARCHED: Final = 1_000
_MOST_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSearch:
    """Which traces are wanted.

    Attributes:
        service: with a span of this service; any unless given.
        operation: with a span of this name; any unless given.
        min_duration: with a span that took so long, such as ``100ms``.
        limit: most traces.
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
        service: of the span that began it.
        operation: name of that span.
        start_us: when it began, in microseconds since 1970.
        duration_us: how long it took, in microseconds.
        spans: how many there are.
        errors: those of them that failed.
    """

    trace_id: str
    service: str
    operation: str
    start_us: int
    duration_us: int
    spans: int
    errors: int


class _NotThereError(TracesError):
    """The server does not have an endpoint."""


class JaegerClient:
    """Asks one server.

    Args:
        url: where it is, for example ``http://127.0.0.1:16686``, with its base path if it has one.

    Raises:
        TracesError: the URL is none.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise TracesError(f"{url!r} is not a URL; pass for example {DEFAULT_URL}")
        self._url = url.rstrip("/")

    def search(self, wanted: TraceSearch) -> tuple[TraceLine, ...]:
        """The newest traces that are wanted, the newest first.

        Raises:
            TracesUnreachableError: nothing answers.
            TracesError: the server does not accept the question, or its answer cannot be read.
        """
        try:
            lines = self._summaries(wanted)
        except _NotThereError:
            lines = self._searched(wanted)
        newest_first = sorted(lines, key=lambda line: line.start_us, reverse=True)
        return tuple(newest_first[: wanted.limit])

    def trace_object(self, trace_id: str) -> dict[str, Any]:
        """A trace in Jaeger's JSON.

        Args:
            trace_id: its id, a beginning of it that no other of the newest has, or ``last``.

        Raises:
            TraceNotFoundError: there is none, or several.
            TracesUnreachableError: nothing answers.
            TracesError: the answer cannot be read.
        """
        known = self._completed(trace_id)
        path = f"/api/traces/{urllib.parse.quote(known, safe='')}"
        found = self._data(path, missing=f"there is no trace {known} at {self._url}")
        if not found or not isinstance(found[0], dict):
            raise TraceNotFoundError(f"there is no trace {known} at {self._url}")
        return found[0]

    def read(self, trace: Mapping[str, Any]) -> TraceView:
        """Reads what `trace_object` gave.

        Raises:
            TracesError: it is not made as Jaeger's are.
        """
        try:
            return read_trace(trace)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable() from error

    def _completed(self, trace_id: str) -> str:
        if trace_id == "last":
            newest = self.search(TraceSearch(limit=1))
            if not newest:
                raise TraceNotFoundError(f"there are no traces at {self._url} yet")
            return newest[0].trace_id
        if len(trace_id) >= _TRACE_ID_DIGITS:
            return trace_id
        begun = [
            line.trace_id
            for line in self.search(TraceSearch(limit=_SEARCHED))
            if line.trace_id.startswith(trace_id.lower())
        ]
        if len(begun) > 1:
            raise TraceNotFoundError(
                f"{len(begun)} traces begin with {trace_id!r}, such as {begun[0]} and {begun[1]};"
                " give more of it"
            )
        # Jaegers know ids without their leading zeros.
        return begun[0] if begun else trace_id

    def _summaries(self, wanted: TraceSearch) -> list[TraceLine]:
        query = {
            "query.serviceName": wanted.service,
            "query.operationName": wanted.operation,
            "query.durationMin": wanted.min_duration,
            "query.searchDepth": str(wanted.limit),
            "query.startTimeMin": "1970-01-01T00:00:00Z",
            "query.startTimeMax": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        answer = self._get("/api/v3/trace-summaries", query)
        try:
            return [_line_of_summary(each) for each in answer.get("summaries") or ()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._unreadable() from error

    def _searched(self, wanted: TraceSearch) -> list[TraceLine]:
        # Old Jaegers insist on a service.
        services = [wanted.service] if wanted.service else self._data("/api/services")
        query = {
            "operation": wanted.operation,
            "minDuration": wanted.min_duration,
            "limit": str(wanted.limit),
            "start": "0",
            "end": str(int(datetime.now(UTC).timestamp() * 1e6)),
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
        except _NotThereError as error:
            if missing:
                raise TraceNotFoundError(missing) from error
            raise TracesError(f"{self._url} does not answer as a Jaeger does: {error}") from error
        data = answer.get("data")
        return data if isinstance(data, list) else []

    def _get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        given = urllib.parse.urlencode({key: value for key, value in query.items() if value})
        url = f"{self._url}{path}{'?' if given else ''}{given}"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # checked
                body = answer.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                text = _message(error.read(_MOST_BYTES)) or str(error.reason)
            if error.code == HTTPStatus.NOT_FOUND:
                raise _NotThereError(f"{path}: {text}") from error
            raise TracesError(f"{self._url} refused the question: {text}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            cause = getattr(reason, "strerror", None) or reason
            raise TracesUnreachableError(f"no traces can be had at {self._url}: {cause}") from error
        try:
            value = json.loads(body)
        except ValueError as error:
            raise _NotThereError(f"{path}: its answer is not JSON") from error
        if not isinstance(value, dict):
            raise self._unreadable()
        return value

    def _unreadable(self) -> TracesError:
        return TracesError(f"the answer of {self._url} is not made as Jaeger's are")


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


def _line_of_trace(trace: TraceView) -> TraceLine:
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
    """What an error of either generation of the API says."""
    try:
        value = json.loads(body)
        if "error" in value:
            return str(value["error"]["message"])
        return "; ".join(str(error["msg"]) for error in value["errors"])
    except (KeyError, TypeError, ValueError):
        return ""
