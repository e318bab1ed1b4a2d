"""OTLP spans and export requests for tests."""

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tidegate.trace_analysis.spans import Trace

START_NS = 1_764_000_000_000_000_000
MS = 1_000_000


def trace_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def span_id(number: int) -> bytes:
    return number.to_bytes(8, "big")


def attributes(**values: object) -> list[KeyValue]:
    """Attributes by name. A double underscore stands for a dot."""
    made = []
    for name, value in values.items():
        match value:
            case bool():
                wrapped = AnyValue(bool_value=value)
            case int():
                wrapped = AnyValue(int_value=value)
            case float():
                wrapped = AnyValue(double_value=value)
            case _:
                wrapped = AnyValue(string_value=str(value))
        made.append(KeyValue(key=name.replace("__", "."), value=wrapped))
    return made


def span(
    trace: int,
    number: int,
    *,
    parent: int = 0,
    name: str = "work",
    kind: int = Span.SPAN_KIND_INTERNAL,
    start_ms: float = 0,
    duration_ms: float = 1,
    failed: bool = False,
    **values: object,
) -> Span:
    start_ns = START_NS + round(start_ms * MS)
    return Span(
        trace_id=trace_id(trace),
        span_id=span_id(number),
        parent_span_id=span_id(parent) if parent else b"",
        name=name,
        kind=kind,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + round(duration_ms * MS),
        attributes=attributes(**values),
        status=Status(code=Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET),
    )


def request(*spans: Span, service: str = "vision", **resource: object) -> ExportTraceServiceRequest:
    """An export request of one process."""
    made = ExportTraceServiceRequest()
    sent = made.resource_spans.add()
    sent.resource.CopyFrom(Resource(attributes=attributes(service__name=service, **resource)))
    scope = sent.scope_spans.add()
    scope.scope.name = "test"
    scope.spans.extend(spans)
    return made


def exported(made: Trace) -> list[ExportTraceServiceRequest]:
    """The export requests of a trace, one for each service."""
    requests = {}
    for each in made.spans:
        sent = requests.setdefault(each.service, [])
        tags = {key: value for key, value in each.tags.items() if key not in ("span.kind", "error")}
        sent.append(
            Span(
                trace_id=bytes.fromhex(made.trace_id),
                span_id=bytes.fromhex(each.span_id),
                parent_span_id=bytes.fromhex(each.parent_id),
                name=each.operation,
                kind=Span.SpanKind.Value(f"SPAN_KIND_{each.kind or 'internal'}".upper()),
                start_time_unix_nano=each.start_us * 1000,
                end_time_unix_nano=(each.start_us + each.duration_us) * 1000,
                attributes=attributes(**tags),
                status=Status(code=Status.STATUS_CODE_ERROR if each.is_error else 0),
            )
        )
    return [request(*spans, service=service) for service, spans in requests.items()]
