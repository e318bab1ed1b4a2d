"""The way of spans from this process to an OTLP collector; needs OpenTelemetry's packages."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from tidegate.cli.console import errors

__all__ = ["exporting"]

_SERVICE = "tidegate-cli"
_PATIENCE_S = 3.0


class _CountingExporter(OTLPSpanExporter):
    """Counts what it cannot deliver."""

    lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.lost += len(spans)
        return result


@contextmanager
def exporting(endpoint: str) -> Iterator[None]:
    """Records the spans of the process from here on, and has sent them when it ends.

    Args:
        endpoint: URL of the collector.
    """
    # The exporter logs each try to reach an absent collector; that is told once, below.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # What OpenTelemetry's variables say of the process goes before our name for it.
    resource = Resource.create({"service.name": _SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = _CountingExporter(
        endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_PATIENCE_S
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
        if exporter.lost:
            errors().print(f"spans not sent to {endpoint}: {exporter.lost}", style="yellow")
