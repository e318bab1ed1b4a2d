"""What a source counts of a finished request, read from the mesh's record of it.

Trailers and headers come from servers and callers, so any value may be senseless. Such a value is
absent here, and no record makes the reader fail.
"""

import math
from typing import TYPE_CHECKING, Final

import grpc
import msgspec

from tidegate.istio.editing.tester_routes import TESTER_ROUTE_PREFIX
from tidegate.rollout.traffic import MatchKind, Sticky

if TYPE_CHECKING:
    from tidegate.mesh.v1 import mesh_pb2

__all__ = ["NOT_SERVED_FLAGS", "FinishedRequest", "StreamingMethods", "read_request"]

_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}

NOT_SERVED_FLAGS: Final = frozenset({"UH", "NC"})
"""Envoy's flags of a request for which it knew no healthy server, or no cluster."""

_LONGEST_LABEL: Final = 64
_MAX_METHODS: Final = 1000
_LONGEST_NUMBER: Final = 20
_NANO: Final = 1e-9


class FinishedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A finished request, or a mirrored copy of one.

    Attributes:
        version: The subset that it went to.
        start_s: When it began, in seconds since the epoch.
        duration_s: How long it took.
        code: The name of its gRPC code; empty for an HTTP request.
        ok: Whether it was answered without an error.
        proxy_timeout: Whether a timeout of the proxy ended it, and not the caller's deadline.
        first_byte_s: Time to the first byte of the answer; None if none came.
        messages: gRPC messages of the server; None if nobody counted them.
        streams: Whether its method is known to stream answers.
        tokens: Tokens of the answer; None if the server does not say.
        characters: Characters of the answer's text; None if the server does not say.
        finish: Why the answer ended, such as ``length``; empty if the server does not say.
        first_token_s: Time to the first token within the server; None if the server does not say.
        label: The best class; empty if the server does not say.
        confidence: The score of the best class; None if the server does not say.
        utilization: The load of the server; None if it does not say.
        user: The user's key; empty if the request names no user, or users do not matter.
        is_testers: Whether a tester's route chose the version.
        by_headers: Whether a route with conditions on headers chose it, so that callers do.
        is_copy: Whether it is a mirrored copy.
        not_served: Whether a proxy knew no healthy server or no cluster for it.
        id: What a request and its copies have in common; empty if nothing.
        trace_id: The trace that it belongs to; empty if it is not traced.
        span_id: A span of it; empty if none is known.
    """

    version: str
    start_s: float
    duration_s: float
    code: str = "OK"
    ok: bool = True
    proxy_timeout: bool = False
    first_byte_s: float | None = None
    messages: int | None = None
    streams: bool = False
    tokens: int | None = None
    characters: int | None = None
    finish: str = ""
    first_token_s: float | None = None
    label: str = ""
    confidence: float | None = None
    utilization: float | None = None
    user: str = ""
    is_testers: bool = False
    by_headers: bool = False
    is_copy: bool = False
    not_served: bool = False
    id: str = ""
    trace_id: str = ""
    span_id: str = ""

    @property
    def callers_reason(self) -> bool:
        """Whether the caller ended the call: it left, or its own deadline passed."""
        if self.code == "CANCELLED":
            return True
        return self.code == "DEADLINE_EXCEEDED" and not self.proxy_timeout


class StreamingMethods:
    """The methods that stream answers, as far as requests have shown.

    A stream of one message looks like a unary call, and nobody counts the messages of a mirrored
    copy. So a method streams once one of its requests had several messages. The number of
    remembered methods is bounded, because callers choose their names.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def streams(self, method: str, messages: int | None) -> bool:
        """Notes a request of a method; returns whether the method is known to stream."""
        if method in self._known:
            return True
        if messages is None or messages < 2 or len(self._known) >= _MAX_METHODS:
            return False
        self._known.add(method)
        return True


def read_request(
    record: "mesh_pb2.RequestRecord",
    methods: StreamingMethods,
    sticky: Sticky | None = None,
    *,
    mirrored: bool = False,
) -> FinishedRequest:
    """Reads the record of a request.

    Args:
        record: The record, with any content.
        methods: The methods that stream, which the record may add to.
        sticky: What names the user; None if users do not matter.
        mirrored: Whether requests are compared with mirrored copies. The duration then ends with
            the last byte of the server, because nobody waits for a caller that reads a copy.
    """
    trailers = record.trailers
    code = _CODES.get(record.grpc_status, "UNKNOWN") if record.HasField("grpc_status") else ""
    start, duration = record.start, record.duration
    if mirrored and record.HasField("time_to_last_byte"):
        duration = record.time_to_last_byte
    first_byte = record.time_to_first_byte if record.HasField("time_to_first_byte") else None
    ttft_ms = _number(trailers.get("tidegate-ttft-ms"))
    trace_id, request_id = record.trace_id, record.request_id
    ok = code == "OK" if code else 0 < record.http_status < 400
    messages = record.response_messages if record.HasField("response_messages") else None
    return FinishedRequest(
        version=record.subset,
        start_s=start.seconds + start.nanos * _NANO,
        duration_s=duration.seconds + duration.nanos * _NANO,
        code=code,
        ok=ok,
        proxy_timeout=record.proxy_timeout,
        first_byte_s=(
            None if first_byte is None else first_byte.seconds + first_byte.nanos * _NANO
        ),
        messages=messages,
        streams=methods.streams(record.method, messages),
        tokens=_count(trailers.get("tidegate-tokens-out")),
        characters=_count(trailers.get("tidegate-chars-out")),
        finish=trailers.get("tidegate-finish", "")[:_LONGEST_LABEL],
        first_token_s=None if ttft_ms is None else ttft_ms / 1000,
        label=trailers.get("tidegate-top1", "")[:_LONGEST_LABEL],
        confidence=_number(trailers.get("tidegate-confidence")),
        utilization=_finite(record.utilization) if record.HasField("utilization") else None,
        user="" if sticky is None else _user(record, sticky),
        is_testers=record.route.startswith(TESTER_ROUTE_PREFIX),
        by_headers=record.by_headers,
        is_copy=record.mirrored,
        not_served=not NOT_SERVED_FLAGS.isdisjoint(record.response_flags),
        id=f"{trace_id}/{request_id}" if trace_id or request_id else "",
        trace_id=trace_id,
        span_id=record.span_id,
    )


def _user(record: "mesh_pb2.RequestRecord", sticky: Sticky) -> str:
    values = record.headers if sticky.kind is MatchKind.HEADER else record.cookies
    found: str = values.get(sticky.name, "")
    return found


def _count(text: str | None) -> int | None:
    if not text or len(text) > _LONGEST_NUMBER or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def _number(text: str | None) -> float | None:
    if not text or len(text) > _LONGEST_NUMBER:
        return None
    try:
        return _finite(float(text))
    except ValueError:
        return None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) and number >= 0 else None
