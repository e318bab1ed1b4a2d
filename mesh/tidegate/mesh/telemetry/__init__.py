"""What proxies report to the controller: finished requests, and requests in progress."""

from tidegate.mesh.telemetry.access_log import (
    AccessLogServicer,
    EntryParser,
    PassedOver,
    mesh_parser,
)
from tidegate.mesh.telemetry.envoy_config import (
    ACCESS_LOG_CLUSTER,
    DEFAULT_USER_HEADERS,
    TRACES_CLUSTER,
    access_log_config,
    mirror_log_config,
    tracing_config,
)
from tidegate.mesh.telemetry.istio_metrics import IstioMetrics, IstioWorkload, WorkloadLookup
from tidegate.mesh.telemetry.load_reports import (
    LoadReportingServicer,
    LoadReports,
    ProxyLoad,
)
from tidegate.mesh.telemetry.request_log import RecordSubscription, RequestLog
from tidegate.mesh.telemetry.request_record import RequestRecord

__all__ = [
    "ACCESS_LOG_CLUSTER",
    "DEFAULT_USER_HEADERS",
    "TRACES_CLUSTER",
    "AccessLogServicer",
    "EntryParser",
    "IstioMetrics",
    "IstioWorkload",
    "LoadReportingServicer",
    "LoadReports",
    "PassedOver",
    "ProxyLoad",
    "RecordSubscription",
    "RequestLog",
    "RequestRecord",
    "WorkloadLookup",
    "access_log_config",
    "mesh_parser",
    "mirror_log_config",
    "tracing_config",
]
