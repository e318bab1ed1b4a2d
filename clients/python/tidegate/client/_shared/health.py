"""Health as ``grpc.health.v1`` tells it."""

from enum import StrEnum

from grpc_health.v1 import health_pb2

__all__ = ["CHECK", "HealthStatus", "health_status"]

CHECK = "/grpc.health.v1.Health/Check"


class HealthStatus(StrEnum):
    """What a server says of itself or of one of its services."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


def health_status(response: health_pb2.HealthCheckResponse) -> HealthStatus:
    """The status of an answer."""
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return HealthStatus(status.lower())
