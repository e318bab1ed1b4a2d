"""Parses the query parameters of Jaeger's API.

Two generations are in use. Grafana and Jaeger's UI before 2026 read ``/api/traces?service=…`` with
times in microseconds. Later ones read ``/api/v3/trace-summaries?query.serviceName=…`` with times in
RFC 3339. Both write durations as Go does, such as ``1.5ms``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

from tidegate.istio.scalars import parse_nanoseconds
from tidegate.mesh.traces.errors import BadQueryError
from tidegate.mesh.traces.query import TraceQuery

__all__ = [
    "Parameters",
    "check_trace",
    "dependency_period_ns",
    "search_query",
    "summary_query",
    "trace_id",
]

_LATEST_NS: Final = 2**63 - 1
_DEFAULT_LIMIT: Final = 100
_MOST_TRACES: Final = 1_500
_DEPENDENCY_LOOKBACK_MS: Final = 24 * 3600 * 1000
_BOOLEANS: Final = frozenset(
    ("1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False")
)
# A number longer than this is no duration; Python refuses to read one of thousands of digits.
_DURATION_CHARACTERS: Final = 100
_FRACTION: Final = re.compile(r"\.(\d{1,9})(?=Z|[+-]|$)")


Parameters: TypeAlias = Mapping[str, Sequence[str]]
"""The parameters of a request, each with all of its values."""


def search_query(parameters: Parameters, now_ns: int) -> TraceQuery:
    """Parses the parameters of ``/api/traces``.

    Without ``start``, the period begins ``lookback`` before its end, or else with the oldest trace.
    As in Jaeger, the service is required unless ``traceID`` is given. With ``traceID``, the other
    parameters must still be valid.

    Args:
        parameters: The parameters.
        now_ns: The time, in nanoseconds since 1970.

    Raises:
        BadQueryError: A parameter is missing or malformed.
    """
    end_ns = _integer(parameters, "end", now_ns // 1000) * 1000
    lookback = _first(parameters, "lookback")
    # The UI sends "custom" when start and end give the period.
    earliest_ns = (
        end_ns - _duration_ns("lookback", lookback) if lookback not in ("", "custom") else 0
    )
    tags: dict[str, str] = {}
    for text in parameters.get("tag", ()):
        key, colon, value = text.partition(":")
        if not colon:
            raise BadQueryError(f"malformed 'tag' parameter, expecting key:value: {text}")
        tags[key] = value
    for text in parameters.get("tags", ()):
        tags |= _tags("tags", text)
    found = _query(
        service=_first(parameters, "service"),
        operation=_first(parameters, "operation"),
        tags=tags,
        start_min_ns=_integer(parameters, "start", earliest_ns // 1000) * 1000,
        start_max_ns=end_ns,
        durations=("minDuration", "maxDuration"),
        limit="limit",
        parameters=parameters,
    )
    _check_raw(parameters)
    if not (found.service or parameters.get("traceID")):
        raise BadQueryError("parameter 'service' is required")
    return found


def check_trace(parameters: Parameters) -> None:
    """Checks the parameters of ``/api/traces/{id}``. They do not change the result: a whole trace.

    Raises:
        BadQueryError: A parameter is malformed.
    """
    for name in ("start", "end"):
        _integer(parameters, name, 0)
    _check_raw(parameters)


def _check_raw(parameters: Parameters) -> None:
    """Checks the parameter ``raw``. Spans are always returned unchanged.

    Raises:
        BadQueryError: It is neither true nor false.
    """
    raw = _first(parameters, "raw")
    if raw and raw not in _BOOLEANS:
        raise BadQueryError(f"unable to parse param 'raw': not true or false: {raw[:80]!r}")


def summary_query(parameters: Parameters) -> TraceQuery:
    """Parses the parameters of ``/api/v3/trace-summaries``.

    Args:
        parameters: The parameters.

    Raises:
        BadQueryError: A parameter is malformed, or the period is missing.
    """
    parameters = {_later_name(name): values for name, values in parameters.items()}
    start, end = (_first(parameters, f"query.startTime{which}") for which in ("Min", "Max"))
    if not start or not end:
        raise BadQueryError("query.startTimeMin and query.startTimeMax are required")
    attributes = _first(parameters, "query.attributes")
    return _query(
        service=_first(parameters, "query.serviceName"),
        operation=_first(parameters, "query.operationName"),
        tags=_tags("query.attributes", attributes) if attributes else {},
        start_min_ns=_instant_ns("query.startTimeMin", start),
        start_max_ns=_instant_ns("query.startTimeMax", end),
        durations=("query.durationMin", "query.durationMax"),
        limit="query.searchDepth",
        parameters=parameters,
    )


def dependency_period_ns(parameters: Parameters, now_ns: int) -> tuple[int, int]:
    """Parses the parameters of ``/api/dependencies``.

    Args:
        parameters: The parameters.
        now_ns: The time, in nanoseconds since 1970.

    Returns:
        Start and end of the period, in nanoseconds since 1970.

    Raises:
        BadQueryError: A parameter is malformed.
    """
    end_ms = _integer(parameters, "endTs", now_ns // 1_000_000)
    start_ms = end_ms - _integer(parameters, "lookback", _DEPENDENCY_LOOKBACK_MS)
    return _clamped(start_ms * 1_000_000), _clamped(end_ms * 1_000_000)


def trace_id(text: str) -> bytes:
    """Parses a trace id, which may lack its leading zeros.

    Raises:
        BadQueryError: It is not 1 to 32 hexadecimal digits.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{1,32}", text):
        raise BadQueryError(f"a trace id has 1 to 32 hexadecimal digits: {text[:80]!r}")
    return bytes.fromhex(text.zfill(32))


def _later_name(name: str) -> str:
    """Returns a parameter's name since 2026. Jaeger accepts ``query.start_time_min`` as well."""
    if name == "query.num_traces":
        return "query.searchDepth"
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


def _query(
    *,
    service: str,
    operation: str,
    tags: Mapping[str, str],
    start_min_ns: int,
    start_max_ns: int,
    durations: tuple[str, str],
    limit: str,
    parameters: Parameters,
) -> TraceQuery:
    shortest, longest = (_first(parameters, name) for name in durations)
    duration_min_ns = _duration_ns(durations[0], shortest) if shortest else 0
    # As in Jaeger, a longest duration of 0 is no limit.
    duration_max_ns = (_duration_ns(durations[1], longest) if longest else 0) or _LATEST_NS
    if duration_max_ns < duration_min_ns:
        raise BadQueryError(f"'{durations[1]}' should be greater than '{durations[0]}'")
    return TraceQuery(
        service=service,
        operation=operation,
        tags=tags,
        start_min_ns=_clamped(start_min_ns),
        start_max_ns=_clamped(start_max_ns),
        duration_min_ns=duration_min_ns,
        duration_max_ns=duration_max_ns,
        limit=min(max(0, _integer(parameters, limit, _DEFAULT_LIMIT, 2**31 - 1)), _MOST_TRACES),
    )


def _first(parameters: Parameters, name: str) -> str:
    values = parameters.get(name, ())
    return values[0] if values else ""


def _integer(parameters: Parameters, name: str, default: int, most: int = _LATEST_NS) -> int:
    text = _first(parameters, name)
    if not text:
        return default
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        raise BadQueryError(f"unable to parse param '{name}': not an integer: {text[:80]!r}")
    if not -most - 1 <= int(text) <= most:
        raise BadQueryError(f"unable to parse param '{name}': value out of range: {text[:80]!r}")
    return int(text)


def _duration_ns(name: str, text: str) -> int:
    length_ns = parse_nanoseconds(text) if len(text) <= _DURATION_CHARACTERS else None
    if length_ns is None:
        raise BadQueryError(
            f"unable to parse param '{name}': not a duration such as 1.5ms or 2h: {text[:80]!r}"
        )
    return min(round(length_ns), _LATEST_NS)


def _instant_ns(name: str, text: str) -> int:
    # Python parses microseconds only, with three or six digits.
    fraction = _FRACTION.search(text)
    nanoseconds = int(fraction[1].ljust(9, "0")) if fraction else 0
    try:
        instant = datetime.fromisoformat(_FRACTION.sub("", text, count=1))
    except ValueError as error:
        raise BadQueryError(f"malformed parameter {name}: {error}") from error
    if instant.tzinfo is None:
        raise BadQueryError(f"malformed parameter {name}: it has no time zone: {text[:80]!r}")
    since = instant - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + nanoseconds


def _tags(name: str, text: str) -> dict[str, str]:
    try:
        tags = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadQueryError(f"malformed '{name}' parameter, cannot read its JSON") from error
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise BadQueryError(f"malformed '{name}' parameter, expecting an object of strings")
    return tags


def _clamped(time_ns: int) -> int:
    return min(max(0, time_ns), _LATEST_NS)
