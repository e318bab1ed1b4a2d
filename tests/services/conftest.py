"""Fixtures that the tests of the runtime and of the chassis share."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

from tidegate.runtime import tracing


@pytest.fixture
def recorded():
    """Turns tracing on; gives a function that returns the finished spans by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.install(provider)
    yield lambda: {each.name: each for each in exporter.get_finished_spans()}
    tracing.install(None)
