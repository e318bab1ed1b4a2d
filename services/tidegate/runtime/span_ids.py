"""Ids of spans that are chosen, so that processes that follow each other add to one trace.

OpenTelemetry draws the ids of spans by chance. A program that restarts would begin a new trace for
the same work, and would record twice what it does again. With ids that follow from names, its spans
join the trace that is there, and a span that is sent again has the id of the first one.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Self

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

__all__ = ["ChosenIds", "SpanIds", "choosing"]

_TRACE_BYTES: Final = 16
_SPAN_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class SpanIds:
    """Names a span.

    Attributes:
        trace_id: The id of its trace, above 0.
        span_id: Its own id, above 0.
    """

    trace_id: int
    span_id: int

    @classmethod
    def of_names(cls, trace: str, span: str) -> Self:
        """Makes ids of names: the same names give the same ids.

        Args:
            trace: What names the trace.
            span: What names the span within it.
        """
        return cls(_number(trace, _TRACE_BYTES), _number(f"{trace}\n{span}", _SPAN_BYTES))

    @classmethod
    def parse(cls, trace_id: str, span_id: str) -> Self | None:
        """Reads hexadecimal digits, as in ``traceparent``; None if they name no span."""
        try:
            found = cls(int(trace_id, 16), int(span_id, 16))
        except ValueError:
            return None
        fits = len(trace_id) == 2 * _TRACE_BYTES and len(span_id) == 2 * _SPAN_BYTES
        return found if fits and found.trace_id > 0 and found.span_id > 0 else None


_chosen: ContextVar[SpanIds | None] = ContextVar("chosen_span_ids", default=None)


class ChosenIds(RandomIdGenerator):
    """Gives the ids that `choosing` says, and others by chance."""

    def generate_span_id(self) -> int:
        """Gives the id of the next span."""
        ids = _chosen.get()
        return super().generate_span_id() if ids is None else ids.span_id

    def generate_trace_id(self) -> int:
        """Gives the id of the next trace."""
        ids = _chosen.get()
        return super().generate_trace_id() if ids is None else ids.trace_id


@contextmanager
def choosing(ids: SpanIds | None) -> Iterator[None]:
    """Gives the span that is started inside chosen ids; None leaves them to chance."""
    token = _chosen.set(ids)
    try:
        yield
    finally:
        _chosen.reset(token)


def _number(name: str, size: int) -> int:
    # Zero is no id.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:size]) or 1
