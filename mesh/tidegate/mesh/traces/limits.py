"""How much is kept, and how much anybody may send."""

from dataclasses import dataclass

__all__ = ["TraceLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLimits:
    """Bounds of the store of traces.

    Attributes:
        max_traces: traces that are kept; the one that began longest ago goes first, whole.
        max_bytes: bytes of spans that are kept, in all traces together; likewise.
        max_spans_per_trace: spans that are kept of one trace; further ones are refused.
        max_span_bytes: size of a span on the wire, and of the resource that it comes from.
        max_attributes: attributes of a span.
        max_batch_spans: spans in one request; those after them are refused.
        max_waiting: requests and queries that wait for the file; further ones are refused.
    """

    max_traces: int = 1_000
    max_bytes: int = 256 * 1024 * 1024
    max_spans_per_trace: int = 10_000
    max_span_bytes: int = 64 * 1024
    max_attributes: int = 256
    max_batch_spans: int = 20_000
    max_waiting: int = 64
