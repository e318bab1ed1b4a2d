"""The way of spans from this process to an OTLP collector; needs OpenTelemetry's packages."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tidegate.cli.console import errors
from tidegate.runtime.otlp.exporters import otlp_exporter

__all__ = ["exporting"]

_SERVICE = "tidegate-cli"
_PATIENCE_S = 3.0


class _CountingExporter(SpanExporter):
    """Counts what it cannot deliver.

    Args:
        exporter: delivers.

    Attributes:
        lost: spans that were not delivered.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Delivers spans."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Ends the connection."""
        self._exporter.shutdown()


@contextmanager
def exporting(endpoint: str | None, protocol: str = "grpc") -> Iterator[None]:
    """Records the spans of the process from here on, and has sent them when it ends.

    Which traces are recorded, OpenTelemetry's variables say to its SDK.

    Args:
        endpoint: the collector; ``None`` for that of this host.
        protocol: ``grpc`` or ``http/protobuf``.
    """
    # The exporter logs each try to reach an absent collector; that is told once, below.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # What OpenTelemetry's variables say of the process goes before our name for it.
    resource = Resource.create({"service.name": _SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = _CountingExporter(otlp_exporter(endpoint, protocol, _PATIENCE_S))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
        if exporter.lost:
            where = endpoint or "this host"
            errors().print(f"spans not sent to {where}: {exporter.lost}", style="yellow")
