"""Exporters of spans over OTLP, as a setting or OpenTelemetry's variables name them."""

from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter

from tidegate.runtime.otlp.environment import HTTP

__all__ = ["otlp_exporter"]


def otlp_exporter(
    endpoint: str | None, protocol: str, timeout_s: float | None = None
) -> SpanExporter:
    """Makes an exporter.

    Args:
        endpoint: The collector. Over gRPC ``http://host:4317``, ``https://host:4317`` or
            ``host:4317``, for which ``OTEL_EXPORTER_OTLP_INSECURE`` says whether TLS is left out.
            Over HTTP a URL; ``/v1/traces`` is added where it has no path. None is where the SDK
            looks by itself, this host.
        protocol: ``grpc`` or ``http/protobuf``.
        timeout_s: How long one export may take; the SDK's own limit unless given.
    """
    if protocol == HTTP:
        # It brings an HTTP client, which those who send over gRPC need not load.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpSpanExporter,
        )

        if endpoint is not None and not urlsplit(endpoint).path:
            endpoint += "/v1/traces"
        return HttpSpanExporter(endpoint=endpoint, timeout=timeout_s)
    # A scheme decides about TLS whatever the variables say.
    is_plain = endpoint is not None and endpoint.startswith("http://")
    return OTLPSpanExporter(
        endpoint=endpoint, insecure=True if is_plain else None, timeout=timeout_s
    )
