"""The chassis: the gRPC server that every Tidegate service runs in.

A server is an `Application` with its services and an engine. The chassis provides the port,
health, reflection, channelz, traces, metrics, logs, TLS, statuses, configuration and a drain that
loses no call:

    class VisionApplication:
        service_names = ("tidegate.vision.v1.VisionService",)

        def register(self, server: grpc.aio.Server) -> None: ...

        def run(self, health: Health) -> AbstractAsyncContextManager[None]: ...

    sys.exit(run(VisionApplication, VisionSettings.from_command_line()))

Logs, traces, metrics, TLS and settings come from `tidegate.runtime`, which also serves servers
without gRPC.
"""

import tidegate.runtime.event_engine  # noqa: F401 - it must run before anything imports grpc

# isort: split
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
from tidegate.chassis.orca import LoadReport
from tidegate.chassis.server import Application, RunningServer, run, running, serve
from tidegate.chassis.settings import ChassisSettings

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
    "report_load",
    "run",
    "running",
    "serve",
    "set_trailers",
]
