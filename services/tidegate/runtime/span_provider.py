"""The provider of a process's spans: where they go, which are recorded, and what sent them.

The resource of the spans names the service, its instance, its version, its environment and its
host. In a Pod the host's name is the Pod's, by which Kiali finds the workload.
"""

import socket
import uuid
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)

from tidegate.runtime.otlp.exporters import otlp_exporter
from tidegate.runtime.span_ids import ChosenIds

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from tidegate.runtime.settings import RuntimeSettings

__all__ = ["span_provider"]


def span_provider(settings: "RuntimeSettings") -> TracerProvider | None:
    """Makes the provider of spans; None if the settings name no exporter.

    Args:
        settings: Exporters, sampler and resource attributes.
    """
    exporters = _exporters(settings)
    if not exporters:
        return None
    attributes: dict[str, AttributeValue] = {
        "service.name": settings.service_name,
        "service.version": settings.service_version,
        "deployment.environment.name": settings.deployment_environment,
    }
    given = OTELResourceDetector().detect().attributes
    if "service.instance.id" not in given:
        attributes["service.instance.id"] = str(uuid.uuid4())
    if "host.name" not in given:
        attributes["host.name"] = socket.gethostname()
    provider = TracerProvider(
        # `create` adds the other attributes of OTEL_RESOURCE_ATTRIBUTES.
        resource=Resource.create(attributes),
        sampler=_sampler(settings),
        id_generator=ChosenIds(),
        shutdown_on_exit=False,
    )
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporters(settings: "RuntimeSettings") -> list[SpanExporter]:
    named = settings.traces_exporter or ("none" if settings.otlp_endpoint is None else "otlp")
    wanted = {each.strip() for each in named.split(",")}
    exporters: list[SpanExporter] = []
    if "otlp" in wanted:
        exporters.append(otlp_exporter(settings.otlp_endpoint, settings.otlp_protocol))
    if "console" in wanted:
        exporters.append(ConsoleSpanExporter())
    return exporters


def _sampler(settings: "RuntimeSettings") -> Sampler:
    kind, ratio = str(settings.trace_sampler), settings.trace_sample_ratio
    roots: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(ratio),
    }
    root = roots[kind.removeprefix("parentbased_")]
    return ParentBased(root) if kind.startswith("parentbased_") else root
