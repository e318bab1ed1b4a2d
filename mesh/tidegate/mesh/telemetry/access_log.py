"""The access log service (ALS), which receives the access logs of Envoys.

The service reads a message of a stream only when the request log has taken the one before. After a
restart of the controller, an Envoy opens a new stream. Entries that it sent meanwhile are lost, and
Envoy counts them as written.
"""

from collections.abc import AsyncIterator, Collection
from typing import Final

import grpc
import structlog
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from tidegate.chassis.calls import ServicerContext
from tidegate.mesh.telemetry import lenient_parsing
from tidegate.mesh.telemetry.request_log import RequestLog
from tidegate.mesh.telemetry.request_record import RequestRecord, parse_entry, proxy_name

__all__ = ["SERVICE_NAME", "AccessLogServicer"]

SERVICE_NAME: Final = "envoy.service.accesslog.v3.AccessLogService"

_log = structlog.stdlib.get_logger(__name__)

_RECORDS: Final = Counter(
    "tidegate_mesh_request_records_total", "Request records received from Envoys."
)
_COPIES: Final = Counter(
    "tidegate_mesh_mirrored_records_total",
    "Request records of mirrored copies received from Envoys.",
)
_SKIPPED: Final = Counter(
    "tidegate_mesh_access_log_entries_passed_over_total",
    "Access log entries that describe no finished HTTP request, by kind.",
    ("kind",),
)
for _kind in ("malformed", "intermediate", "tcp"):
    # Start each series at 0, so that `rate()` sees the first event.
    _SKIPPED.labels(_kind)
_STREAMS: Final = Gauge("tidegate_mesh_access_log_streams", "Open access log streams of Envoys.")


class AccessLogServicer:
    """``envoy.service.accesslog.v3.AccessLogService``: publishes access log entries as records.

    Args:
        log: The request log to publish to.
        user_cookies: Names of the cookies that name a user.
    """

    def __init__(self, log: RequestLog, user_cookies: Collection[str] = ()) -> None:
        self._log = log
        self._user_cookies = frozenset(user_cookies)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        # The handler parses the bytes itself: gRPC ends the stream at a message it cannot parse.
        method: grpc.RpcMethodHandler[bytes, StreamAccessLogsResponse] = (
            grpc.stream_unary_rpc_method_handler(
                self._stream, response_serializer=StreamAccessLogsResponse.SerializeToString
            )
        )
        methods = {"StreamAccessLogs": method}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE_NAME, methods)]
        )
        server.add_registered_method_handlers(SERVICE_NAME, methods)

    async def _stream(
        self, messages: AsyncIterator[bytes], context: ServicerContext
    ) -> StreamAccessLogsResponse:
        proxy, role = "", ""
        with _STREAMS.track_inprogress():
            async for data in messages:
                try:
                    message = lenient_parsing.parse(StreamAccessLogsMessage, data)
                except DecodeError as error:
                    _SKIPPED.labels("malformed").inc()
                    _log.warning(
                        "malformed access log message", peer=context.peer(), error=str(error)
                    )
                    continue
                # Only the first message must name the sender.
                if message.HasField("identifier"):
                    proxy, role = proxy_name(message.identifier.node)
                    _log.info(
                        "access log stream identified", proxy=proxy, role=role, peer=context.peer()
                    )
                if records := self._records(message, proxy, role):
                    for record in records:
                        (_COPIES if record.mirrored else _RECORDS).inc()
                    await self._log.publish(records)
        return StreamAccessLogsResponse()

    def _records(
        self, message: StreamAccessLogsMessage, proxy: str, role: str
    ) -> list[RequestRecord]:
        entries = message.http_logs.log_entry
        parsed = (parse_entry(entry, proxy, role, self._user_cookies) for entry in entries)
        records = [record for record in parsed if record is not None]
        if len(records) < len(entries):
            _SKIPPED.labels("intermediate").inc(len(entries) - len(records))
        if message.tcp_logs.log_entry:
            _SKIPPED.labels("tcp").inc(len(message.tcp_logs.log_entry))
        return records
