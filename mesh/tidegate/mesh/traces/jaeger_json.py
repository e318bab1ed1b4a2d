"""Converts OpenTelemetry spans to the JSON of Jaeger's query API.

The mapping is OpenTelemetry's "transformation to non-OTLP formats" for Jaeger. Kind, status, scope
and trace state become tags, and events become logs. The parent becomes a ``CHILD_OF`` reference,
links become ``FOLLOWS_FROM`` references, and the resource becomes the process. The result is always
valid JSON: numbers that JavaScript or JSON cannot represent are written as text.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from tidegate.mesh.traces.intake import SERVICE_NAME_ATTRIBUTE, service_name
from tidegate.mesh.traces.query import StoredTrace

__all__ = ["KINDS", "has_tags", "trace_object"]

KINDS: Final[Mapping[int, str]] = {
    Span.SPAN_KIND_INTERNAL: "internal",
    Span.SPAN_KIND_SERVER: "server",
    Span.SPAN_KIND_CLIENT: "client",
    Span.SPAN_KIND_PRODUCER: "producer",
    Span.SPAN_KIND_CONSUMER: "consumer",
}
"""Jaeger's names of OTLP's span kinds. A span of unspecified kind has none."""

_STATUSES: Final = {Status.STATUS_CODE_OK: "OK", Status.STATUS_CODE_ERROR: "ERROR"}
# The largest integer that JavaScript represents exactly.
_SAFE_INTEGER: Final = 2**53 - 1

_Tag = dict[str, Any]


def trace_object(trace: StoredTrace) -> dict[str, Any]:
    """Returns a trace as an element of ``data`` in a response of Jaeger's API.

    Args:
        trace: The stored trace.
    """
    digests = dict.fromkeys(span.process for span in trace.spans)
    names = {digest: f"p{number}" for number, digest in enumerate(digests, start=1)}
    return {
        "traceID": trace.trace_id.hex(),
        "spans": [
            _span_object(ScopeSpans.FromString(span.body), names[span.process])
            for span in trace.spans
        ],
        "processes": {
            name: _process_object(Resource.FromString(trace.processes[digest]))
            for digest, name in names.items()
        },
        "warnings": None,
    }


def has_tags(wanted: Mapping[str, str], scope_spans: bytes, resource: bytes) -> bool:
    """Whether a span has some tags, looking at the span, its events and its process.

    A failed span has ``error=true``. Every other span has ``error=false``, although no sender
    reports it.

    Args:
        wanted: The tags, as text by key.
        scope_spans: A serialized ``ScopeSpans`` with the span.
        resource: The span's resource, serialized.
    """
    scoped = ScopeSpans.FromString(scope_spans)
    span = scoped.spans[0]
    groups = (
        _span_tags(span, scoped),
        _tags(Resource.FromString(resource).attributes),
        *(_tags(event.attributes) for event in span.events),
    )
    found = {(tag["key"], _as_text(tag["value"])) for group in groups for tag in group}
    if ("error", "true") not in found:
        found.add(("error", "false"))
    return all(item in found for item in wanted.items())


def _span_object(scoped: ScopeSpans, process: str) -> dict[str, Any]:
    span = scoped.spans[0]
    trace_id = span.trace_id.hex()
    references = [_reference("FOLLOWS_FROM", link.trace_id, link.span_id) for link in span.links]
    if any(span.parent_span_id):
        # Readers take the first reference as the parent.
        references.insert(0, _reference("CHILD_OF", span.trace_id, span.parent_span_id))
    duration_ns = max(0, span.end_time_unix_nano - span.start_time_unix_nano)
    return {
        "traceID": trace_id,
        "spanID": span.span_id.hex(),
        "flags": span.flags & 0xFF,
        "operationName": span.name,
        "references": references,
        "startTime": span.start_time_unix_nano // 1000,
        "duration": duration_ns // 1000,
        "tags": _span_tags(span, scoped),
        "logs": [
            {"timestamp": event.time_unix_nano // 1000, "fields": _event_fields(event)}
            for event in span.events
        ],
        "processID": process,
        "warnings": _warnings(span) or None,
    }


def _process_object(resource: Resource) -> dict[str, Any]:
    others = (each for each in resource.attributes if each.key != SERVICE_NAME_ATTRIBUTE)
    return {"serviceName": service_name(resource), "tags": _tags(others)}


def _reference(kind: str, trace_id: bytes, span_id: bytes) -> dict[str, str]:
    return {"refType": kind, "traceID": trace_id.hex(), "spanID": span_id.hex()}


def _span_tags(span: Span, scoped: ScopeSpans) -> list[_Tag]:
    tags: list[_Tag] = []
    for key, text in (
        ("otel.scope.name", scoped.scope.name),
        ("otel.scope.version", scoped.scope.version),
        ("span.kind", KINDS.get(span.kind, "")),
        ("otel.status_code", _STATUSES.get(span.status.code, "")),
        ("otel.status_description", span.status.message),
        ("w3c.tracestate", span.trace_state),
    ):
        if text:
            tags.append(_tag(key, "string", text))
    if span.status.code == Status.STATUS_CODE_ERROR:
        tags.append(_tag("error", "bool", True))
    return _tags(span.attributes) + tags


def _event_fields(event: Span.Event) -> list[_Tag]:
    name = [_tag("event", "string", event.name)] if event.name else []
    return name + _tags(event.attributes)


def _warnings(span: Span) -> list[str]:
    warnings = []
    if span.end_time_unix_nano < span.start_time_unix_nano:
        warnings.append("the span ended before it began; its duration is shown as 0")
    for what, count in (
        ("attributes", span.dropped_attributes_count),
        ("events", span.dropped_events_count),
        ("links", span.dropped_links_count),
    ):
        if count:
            warnings.append(f"{count} {what} were dropped by the sender")
    return warnings


def _tags(attributes: Iterable[KeyValue]) -> list[_Tag]:
    return [_typed(attribute.key, attribute.value) for attribute in attributes]


def _typed(key: str, value: AnyValue) -> _Tag:
    match value.WhichOneof("value"):
        case "bool_value":
            return _tag(key, "bool", value.bool_value)
        case "int_value":
            number = value.int_value
            return _tag(key, "int64", number if abs(number) <= _SAFE_INTEGER else str(number))
        case "double_value":
            return _tag(key, "float64", _finite(value.double_value))
        case "bytes_value":
            return _tag(key, "binary", _base64(value.bytes_value))
        case "array_value" | "kvlist_value":
            plain = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
            return _tag(key, "string", plain)
    return _tag(key, "string", value.string_value)


def _plain(value: AnyValue) -> Any:
    """Returns a value as plain JSON. Protobuf limits how deep values nest."""
    match value.WhichOneof("value"):
        case "array_value":
            return [_plain(each) for each in value.array_value.values]
        case "kvlist_value":
            return {each.key: _plain(each.value) for each in value.kvlist_value.values}
        case "double_value":
            return _finite(value.double_value)
        case "bytes_value":
            return _base64(value.bytes_value)
        case None:
            return None
        case other:
            return getattr(value, other)


def _tag(key: str, kind: str, value: object) -> _Tag:
    return {"key": key, "type": kind, "value": value}


def _finite(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
