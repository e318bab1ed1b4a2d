"""Records of finished requests as MeshService sends them, and which of them somebody wants."""

import grpc

from tidegate.mesh.control.status import timestamp
from tidegate.mesh.telemetry import RequestRecord
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["fits", "to_wire"]


def fits(record: RequestRecord, wanted: mesh_pb2.WatchRequestsRequest) -> bool:
    """Whether a record is wanted."""
    if wanted.host and wanted.host != record.host and not record.host.startswith(f"{wanted.host}."):
        return False
    if wanted.subset and wanted.subset != record.subset:
        return False
    if not wanted.failures_only:
        return True
    ok = record.grpc_status in (None, grpc.StatusCode.OK)
    return not ok or bool(record.response_flags)


def to_wire(record: RequestRecord) -> mesh_pb2.RequestRecord:
    """A record on the wire."""
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
