"""What the store of traces tells Prometheus."""

from typing import Final

from prometheus_client import Counter, Gauge

from tidegate.mesh.traces.intake import Refusal

__all__ = ["DUPLICATES", "EVICTED", "KEPT_BYTES", "KEPT_SPANS", "KEPT_TRACES", "REFUSED", "TAKEN"]

TAKEN: Final = Counter("tidegate_traces_spans_taken", "Spans that were kept.")
DUPLICATES: Final = Counter(
    "tidegate_traces_spans_duplicate", "Spans that were there already, since they were sent again."
)
REFUSED: Final = Counter(
    "tidegate_traces_spans_refused", "Spans that were not kept, by reason.", ("reason",)
)
for _refusal in Refusal:
    # From 0 on, so that the first refusal is a rise.
    REFUSED.labels(_refusal)
EVICTED: Final = Counter("tidegate_traces_evicted", "Traces that went to make room for newer ones.")
KEPT_TRACES: Final = Gauge("tidegate_traces_kept", "Traces that are kept.")
KEPT_SPANS: Final = Gauge("tidegate_traces_kept_spans", "Spans that are kept.")
KEPT_BYTES: Final = Gauge("tidegate_traces_kept_bytes", "Bytes of spans that are kept.")
