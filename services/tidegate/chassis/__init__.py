"""The chassis: what every gRPC server of Tidegate stands on.

A server is an `Application` with some services and an engine; the chassis gives it its port,
health, reflection, channelz, traces, metrics, logs, TLS, statuses, configuration and an end that
loses nothing:

    class VisionApplication:
        service_names = ("tidegate.vision.v1.VisionService",)

        def register(self, server: grpc.aio.Server) -> None: ...

        def run(self, health: Health) -> AbstractAsyncContextManager[None]: ...

    sys.exit(run(VisionApplication, VisionSettings.from_command_line()))
"""

from tidegate.chassis import _grpc_core  # noqa: F401 - for what it sets, before anything imports grpc
from tidegate.chassis.calls import (
    ResponseWriter,
    ServicerContext,
    code_of_cancellation,
    deadline_of,
    deferred_client_identity,
    report_load,
    set_trailers,
)
from tidegate.chassis.health import Health
from tidegate.chassis.logging import get_logger
from tidegate.chassis.orca import LoadReport
from tidegate.chassis.server import Application, RunningServer, run, running, serve
from tidegate.chassis.settings import ChassisSettings
from tidegate.chassis.tracing import record_span, span, traced

__all__ = [
    "Application",
    "ChassisSettings",
    "Health",
    "LoadReport",
    "ResponseWriter",
    "RunningServer",
    "ServicerContext",
    "code_of_cancellation",
    "deadline_of",
    "deferred_client_identity",
    "get_logger",
    "record_span",
    "report_load",
    "run",
    "running",
    "serve",
    "set_trailers",
    "span",
    "traced",
]
