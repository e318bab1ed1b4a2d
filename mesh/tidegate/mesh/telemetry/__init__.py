"""What proxies tell the controller: finished requests, and how many are running where."""

from tidegate.mesh.telemetry.access_log import AccessLogServicer
from tidegate.mesh.telemetry.envoy_config import (
    ACCESS_LOG_CLUSTER,
    TRACES_CLUSTER,
    access_log_config,
    tracing_config,
)
from tidegate.mesh.telemetry.istio_metrics import IstioMetrics, Workload, WorkloadLookup
from tidegate.mesh.telemetry.load_reports import InProgress, LoadReportingServicer, LoadReports
from tidegate.mesh.telemetry.record import RequestRecord
from tidegate.mesh.telemetry.request_log import RequestLog, Subscription

__all__ = [
    "ACCESS_LOG_CLUSTER",
    "TRACES_CLUSTER",
    "AccessLogServicer",
    "InProgress",
    "IstioMetrics",
    "LoadReportingServicer",
    "LoadReports",
    "RequestLog",
    "RequestRecord",
    "Subscription",
    "Workload",
    "WorkloadLookup",
    "access_log_config",
    "tracing_config",
]
