"""A request record as from the access log, and the workloads that took part."""

import dataclasses

import grpc
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry

from tidegate.mesh.telemetry.istio_metrics import IstioWorkload
from tidegate.mesh.telemetry.request_record import parse_entry

HOST = "vision.models.svc.cluster.local"
LABELS = {
    "app": "vision",
    "version": "v2",
    "app.kubernetes.io/version": "2-int8",
}
VISION = IstioWorkload.from_labels("vision-v2", "models", LABELS)
RECORD = dataclasses.replace(
    parse_entry(HTTPAccessLogEntry()),
    proxy_role="ingress",
    host=HOST,
    port=8500,
    subset="v2",
    cluster=f"outbound|8500|v2|{HOST}",
    upstream_address="127.0.0.1:8501",
    service="tidegate.vision.v1.VisionService",
    method="Classify",
    is_grpc=True,
    grpc_status=grpc.StatusCode.OK,
    http_status=200,
    duration_s=0.030,
    time_to_first_byte_s=0.020,
    request_bytes=150_000,
    response_bytes=300,
    request_messages=1,
    response_messages=4,
)
GATEWAY = IstioWorkload.from_labels("gateway", "models", {"app": "gateway"})


def at(workloads):
    return lambda address, at_s: workloads.get(address)
