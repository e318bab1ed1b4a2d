"""Records of finished requests: which of them a client asked for, as MeshService sends them."""

import asyncio
from collections.abc import AsyncGenerator

import grpc

from tidegate.mesh.control.api.changes import timestamp
from tidegate.mesh.telemetry import RequestLog, RequestRecord
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["finished_requests"]


async def finished_requests(
    requests: RequestLog, request: mesh_pb2.WatchRequestsRequest, end: asyncio.Event
) -> AsyncGenerator[mesh_pb2.WatchRequestsResponse]:
    """Yields the records that a client asked for, as requests finish.

    Args:
        requests: The records of all requests.
        request: Which records the client asked for.
        end: Set when the stream is to end.
    """
    with requests.subscribe("watch") as records:
        ending = asyncio.ensure_future(end.wait())
        coming = asyncio.ensure_future(anext(records))
        try:
            while not end.is_set():
                await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    record, coming = coming.result(), asyncio.ensure_future(anext(records))
                    if _matches(record, request):
                        yield mesh_pb2.WatchRequestsResponse(
                            record=_message(record), lost=records.lost
                        )
        finally:
            ending.cancel()
            coming.cancel()


def _matches(record: RequestRecord, wanted: mesh_pb2.WatchRequestsRequest) -> bool:
    if wanted.host and wanted.host != record.host and not record.host.startswith(f"{wanted.host}."):
        return False
    if wanted.subset and wanted.subset != record.subset:
        return False
    if not wanted.failures_only:
        return True
    ok = record.grpc_status in (None, grpc.StatusCode.OK)
    return not ok or bool(record.response_flags)


def _message(record: RequestRecord) -> mesh_pb2.RequestRecord:
    sent = mesh_pb2.RequestRecord(
        proxy=record.proxy,
        start=timestamp(record.start_time_s),
        host=record.host,
        subset=record.subset,
        cluster=record.cluster,
        endpoint=record.upstream_address,
        method=record.path,
        response_flags=record.response_flags,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        model_version=record.model_version or "",
        trace_id=record.trace_id,
        trailers=record.trailers,
    )
    if record.grpc_status is not None:
        sent.grpc_status = record.grpc_status.value[0]
    if record.time_to_first_byte_s is not None:
        sent.time_to_first_byte.FromNanoseconds(int(record.time_to_first_byte_s * 1e9))
    sent.duration.FromNanoseconds(int(record.duration_s * 1e9))
    return sent
