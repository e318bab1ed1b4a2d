"""The exporter of a command's spans. Only this module needs OpenTelemetry's packages."""

import logging
import socket
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
_TIMEOUT_S = 3.0


class _CountingExporter(SpanExporter):
    """Counts the spans that an exporter cannot deliver.

    Args:
        exporter: The exporter.

    Attributes:
        lost: The number of spans that were not delivered.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports spans."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Closes the exporter."""
        self._exporter.shutdown()


@contextmanager
def exporting(endpoint: str | None, protocol: str = "grpc") -> Iterator[None]:
    """Records the spans of the process, and sends them before the context ends.

    The SDK takes sampling from OpenTelemetry's own variables.

    Args:
        endpoint: The collector; ``None`` for the default one on this host.
        protocol: ``grpc`` or ``http/protobuf``.
    """
    # The exporter logs each failed try; the message below reports the loss once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # OpenTelemetry's variables win over our name for the process.
    own = {"service.name": _SERVICE, "host.name": socket.gethostname()}
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = _CountingExporter(otlp_exporter(endpoint, protocol, _TIMEOUT_S))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
        if exporter.lost:
            where = endpoint or "this host"
            errors().print(f"spans not sent to {where}: {exporter.lost}", style="yellow")
