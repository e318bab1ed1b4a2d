"""Records of finished requests: which of them a client asked for, as MeshService sends them.

Records that are ready together share a message. A message for each record would cost a busy mesh a
core: gRPC's share of the work is by message.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.chassis.calls import ServicerContext
from tidegate.mesh.telemetry import RequestLog, RequestRecord
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["finished_requests", "record_message"]

# Ten seconds of 5,000 requests/s.
_CAPACITY: Final = 50_000
# Callers choose some of the texts. With these limits a message stays below gRPC's 4 MiB.
_RECORDS_IN_A_MESSAGE: Final = 200
_LONGEST_TEXT: Final = 512
# The end of the year 9999.
_LATEST_S: Final = 253402300799


async def finished_requests(
    requests: RequestLog,
    request: mesh_pb2.WatchRequestsRequest,
    context: ServicerContext,
    end: asyncio.Event,
    earlier: Callable[[], Sequence[mesh_pb2.RequestRecord]] = tuple,
) -> AsyncGenerator[mesh_pb2.WatchRequestsResponse]:
    """Yields the records that a client asked for, as requests finish.

    Args:
        requests: The records of all requests.
        request: Which records the client asked for.
        context: The call; its headers tell the client that the watch has begun.
        end: Set when the stream is to end.
        earlier: Gives the records that are kept and that the client asked for.
    """
    wanted = _filter(request)
    with requests.subscribe("watch", capacity=_CAPACITY, wanted=wanted) as records:
        # Whatever comes from now on is in the subscription.
        kept = earlier()
        await context.send_initial_metadata(())
        for first in range(0, len(kept), _RECORDS_IN_A_MESSAGE):
            yield mesh_pb2.WatchRequestsResponse(
                records=kept[first : first + _RECORDS_IN_A_MESSAGE], lost=records.lost
            )
        ending = asyncio.ensure_future(end.wait())
        coming = asyncio.ensure_future(records.next_batch(_RECORDS_IN_A_MESSAGE))
        try:
            while not end.is_set():
                await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    batch = coming.result()
                    coming = asyncio.ensure_future(records.next_batch(_RECORDS_IN_A_MESSAGE))
                    yield mesh_pb2.WatchRequestsResponse(
                        records=map(record_message, batch), lost=records.lost
                    )
        finally:
            ending.cancel()
            coming.cancel()


def _filter(wanted: mesh_pb2.WatchRequestsRequest) -> Callable[[RequestRecord], bool]:
    host, subset, prefix = wanted.host, wanted.subset, f"{wanted.host}."

    def matches(record: RequestRecord) -> bool:
        if record.mirrored and not wanted.include_mirrored:
            return False
        if host and host != record.host and not record.host.startswith(prefix):
            return False
        if subset and subset != record.subset:
            return False
        if not wanted.failures_only:
            return True
        ok = record.grpc_status in (None, grpc.StatusCode.OK)
        return not ok or bool(record.response_flags)

    return matches


def record_message(record: RequestRecord) -> mesh_pb2.RequestRecord:
    """Returns a record as MeshService sends it."""
    sent = mesh_pb2.RequestRecord(
        proxy=record.proxy,
        host=record.host,
        subset=record.subset,
        cluster=record.cluster,
        endpoint=record.upstream_address,
        method=record.path[:_LONGEST_TEXT],
        response_flags=record.response_flags,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        model_version=record.model_version or "",
        trace_id=record.trace_id,
        span_id=record.span_id,
        trailers=_short(record.trailers),
        route=record.route,
        by_headers=record.by_headers,
        request_id=record.request_id[:_LONGEST_TEXT],
        mirrored=record.mirrored,
        proxy_timeout=record.proxy_timeout,
        headers=_short(record.user_headers),
        cookies=_short(record.cookies),
        response_messages=record.response_messages,
        utilization=record.utilization,
        http_status=record.http_status,
        server_side=record.server_side,
    )
    if record.grpc_status is not None:
        sent.grpc_status = record.grpc_status.value[0]
    _set(sent.start, record.start_time_s)
    if record.time_to_first_byte_s is not None:
        _set(sent.time_to_first_byte, record.time_to_first_byte_s)
    if record.time_to_last_byte_s is not None:
        _set(sent.time_to_last_byte, record.time_to_last_byte_s)
    _set(sent.duration, record.duration_s)
    return sent


def _set(sent: Timestamp | Duration, seconds: float) -> None:
    # Anyone on the machine can send an access log, with any times.
    sent.FromNanoseconds(int(min(max(seconds, 0.0), _LATEST_S) * 1e9))


def _short(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: text[:_LONGEST_TEXT] for name, text in texts.items()}
