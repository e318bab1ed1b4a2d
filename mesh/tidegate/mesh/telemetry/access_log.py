"""The access log service (ALS), which receives the access logs of Envoys.

The service reads a message of a stream only when the request log has taken the one before. After a
restart of the controller, an Envoy opens a new stream. Entries that it sent meanwhile are lost, and
Envoy counts them as written.

How an entry becomes a record depends on who configured the Envoy. The laptop's mesh and istiod have
a parser each.
"""

import enum
from collections.abc import AsyncIterator, Callable, Collection
from typing import Final

import grpc
import structlog
from envoy.config.core.v3.base_pb2 import Node
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from tidegate.chassis.calls import ServicerContext
from tidegate.mesh.telemetry import lenient_parsing
from tidegate.mesh.telemetry.request_log import RequestLog
from tidegate.mesh.telemetry.request_record import RequestRecord, parse_entry, proxy_name

__all__ = ["SERVICE_NAME", "AccessLogServicer", "EntryParser", "PassedOver", "mesh_parser"]

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
_STREAMS: Final = Gauge("tidegate_mesh_access_log_streams", "Open access log streams of Envoys.")


class PassedOver(enum.Enum):
    """Why an entry becomes no record."""

    MALFORMED = "malformed"
    INTERMEDIATE = "intermediate"
    TCP = "tcp"
    DUPLICATE = "duplicate"


for _kind in PassedOver:
    # Start each series at 0, so that `rate()` sees the first event.
    _SKIPPED.labels(_kind.value)

EntryParser = Callable[[HTTPAccessLogEntry], RequestRecord | PassedOver]
"""Turns the entries of one Envoy into records. No entry makes it fail."""


def mesh_parser(node: Node, user_cookies: Collection[str] = ()) -> EntryParser:
    """Returns the parser for an Envoy that Tidegate's mesh configured.

    Args:
        node: The Envoy's node.
        user_cookies: Names of the cookies that name a user.
    """
    proxy, role = proxy_name(node)

    def parse(entry: HTTPAccessLogEntry) -> RequestRecord | PassedOver:
        return parse_entry(entry, proxy, role, user_cookies) or PassedOver.INTERMEDIATE

    return parse


class AccessLogServicer:
    """``envoy.service.accesslog.v3.AccessLogService``: publishes access log entries as records.

    Args:
        log: The request log to publish to.
        parser_of: Gives the parser for the entries of an Envoy, by its node.
    """

    def __init__(
        self, log: RequestLog, parser_of: Callable[[Node], EntryParser] = mesh_parser
    ) -> None:
        self._log = log
        self._parser_of = parser_of

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
        parse = self._parser_of(Node())
        with _STREAMS.track_inprogress():
            async for data in messages:
                try:
                    message = lenient_parsing.parse(StreamAccessLogsMessage, data)
                except DecodeError as error:
                    _SKIPPED.labels(PassedOver.MALFORMED.value).inc()
                    _log.warning(
                        "malformed access log message", peer=context.peer(), error=str(error)
                    )
                    continue
                # Only the first message must name the sender.
                if message.HasField("identifier"):
                    node = message.identifier.node
                    parse = self._parser_of(node)
                    proxy, role = proxy_name(node)
                    _log.info(
                        "access log stream identified", proxy=proxy, role=role, peer=context.peer()
                    )
                if records := _records(message, parse):
                    await self._log.publish(records)
        return StreamAccessLogsResponse()


def _records(message: StreamAccessLogsMessage, parse: EntryParser) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    for parsed in map(parse, message.http_logs.log_entry):
        if isinstance(parsed, PassedOver):
            _SKIPPED.labels(parsed.value).inc()
        else:
            (_COPIES if parsed.mirrored else _RECORDS).inc()
            records.append(parsed)
    if message.tcp_logs.log_entry:
        _SKIPPED.labels(PassedOver.TCP.value).inc(len(message.tcp_logs.log_entry))
    return records
