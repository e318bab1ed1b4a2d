"""The OTLP/gRPC receiver, for OpenTelemetry exporters and Envoy's tracer.

An invalid span is refused on its own, and the response counts it in ``partial_success``. If the
store is busy, the whole request is refused with a time after which to retry.
"""

from typing import Final

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from tidegate.chassis import ServicerContext
from tidegate.chassis.errors import ResourceExhausted, Unavailable
from tidegate.mesh.traces.errors import StoreBusyError, StoreError
from tidegate.mesh.traces.store import TraceStore
from tidegate.runtime.logging import get_logger

__all__ = ["SERVICE_NAME", "OtlpTraceServicer"]

SERVICE_NAME: Final = "opentelemetry.proto.collector.trace.v1.TraceService"

_log = get_logger(__name__)

_RETRY_AFTER_S: Final = 1.0


class OtlpTraceServicer(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP's ``TraceService`` in front of a trace store.

    Args:
        store: The store for the spans.
    """

    def __init__(self, store: TraceStore) -> None:
        self._store = store

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            self, server
        )
        # OpenTelemetry's generated code predates registered methods in gRPC.
        export: grpc.RpcMethodHandler[
            otlp.ExportTraceServiceRequest, otlp.ExportTraceServiceResponse
        ] = grpc.unary_unary_rpc_method_handler(
            self.Export,
            request_deserializer=otlp.ExportTraceServiceRequest.FromString,
            response_serializer=otlp.ExportTraceServiceResponse.SerializeToString,
        )
        server.add_registered_method_handlers(SERVICE_NAME, {"Export": export})

    async def Export(  # noqa: N802  # the protocol's name
        self, request: otlp.ExportTraceServiceRequest, context: ServicerContext
    ) -> otlp.ExportTraceServiceResponse:
        """Stores the valid spans of a request.

        Raises:
            ResourceExhausted: Too many requests wait. Exporters try again.
            Unavailable: The trace file cannot be written. Exporters try again.
        """
        del context
        try:
            refused = await self._store.add(request)
        except StoreBusyError as error:
            raise ResourceExhausted(
                str(error), reason="TRACES_BUSY", retry_after_s=_RETRY_AFTER_S
            ) from error
        except StoreError as error:
            _log.warning("spans not stored", error=str(error))
            raise Unavailable(
                str(error), reason="TRACES_UNAVAILABLE", retry_after_s=_RETRY_AFTER_S
            ) from error
        response = otlp.ExportTraceServiceResponse()
        if refused:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(refused.items()))
            response.partial_success.rejected_spans = sum(refused.values())
            response.partial_success.error_message = f"spans not stored: {reasons}"
        return response
