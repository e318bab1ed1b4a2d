"""Exporters of spans over OTLP, for an endpoint and a protocol."""

from urllib.parse import urlsplit

from opentelemetry.sdk.trace.export import SpanExporter

from tidegate.runtime.otlp.environment import HTTP

__all__ = ["otlp_exporter"]


def otlp_exporter(
    endpoint: str | None, protocol: str, timeout_s: float | None = None
) -> SpanExporter:
    """Makes an exporter.

    Args:
        endpoint: The collector. Over gRPC ``http://host:4317``, ``https://host:4317`` or
            ``host:4317``, which uses TLS unless ``OTEL_EXPORTER_OTLP_INSECURE`` is true. Over HTTP
            a URL; a URL without a path gets ``/v1/traces``. None is the SDK's default, this host.
        protocol: ``grpc`` or ``http/protobuf``.
        timeout_s: How long one export may take; the SDK's own limit unless given.
    """
    # Each exporter loads a client of its protocol, which programs with the other do not need.
    if protocol == HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpSpanExporter,
        )

        if endpoint is not None and not urlsplit(endpoint).path:
            endpoint += "/v1/traces"
        return HttpSpanExporter(endpoint=endpoint, timeout=timeout_s)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    # The scheme of the endpoint decides about TLS; the variables do not.
    is_plain = endpoint is not None and endpoint.startswith("http://")
    return OTLPSpanExporter(
        endpoint=endpoint, insecure=True if is_plain else None, timeout=timeout_s
    )
