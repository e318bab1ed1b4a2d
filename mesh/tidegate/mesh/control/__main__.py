"""``python -m tidegate.mesh.control``: starts the controller."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from tidegate.chassis.server import run
from tidegate.mesh.ads import Distribution
from tidegate.mesh.ads.servicer import AdsServicer
from tidegate.mesh.compiler import Compiler, MeshSettings
from tidegate.mesh.control.api.service import SERVICE_NAME, MeshServicer
from tidegate.mesh.control.configuration.journal import Journal
from tidegate.mesh.control.controller import Controller
from tidegate.mesh.control.endpoints.topology import Topology
from tidegate.mesh.control.settings import ControlSettings
from tidegate.mesh.control.transitions.drainer import RequestsInProgress
from tidegate.mesh.telemetry import (
    AccessLogServicer,
    IstioMetrics,
    IstioWorkload,
    LoadReportingServicer,
    LoadReports,
    RequestLog,
    access_log_config,
    mesh_parser,
    mirror_log_config,
    tracing_config,
)
from tidegate.mesh.traces.intake import TraceLimits
from tidegate.mesh.traces.jaeger_api import jaeger_api
from tidegate.mesh.traces.receiver import OtlpTraceServicer
from tidegate.mesh.traces.store import TraceStore
from tidegate.mesh.v1 import mesh_pb2_grpc
from tidegate.runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from tidegate.chassis.health import Health

__all__ = ["ControlApplication", "main"]

_log = get_logger(__name__)


class ControlApplication:
    """Everything that the controller serves, made of one set of objects.

    The streams of proxies never end by themselves. They are not among the application's services,
    so a drain does not wait for them; proxies go on with what they have.

    Args:
        settings: The controller's settings.
    """

    service_names = (SERVICE_NAME,)

    def __init__(self, settings: ControlSettings) -> None:
        self._settings = settings
        self._distribution = Distribution()
        self._requests = RequestLog()
        self._reports = LoadReports()
        self._in_progress = RequestsInProgress(self._reports, self._distribution)
        self._journal = Journal(settings.state_file)
        self._traces = TraceStore(settings.traces_file, TraceLimits(max_traces=settings.max_traces))
        cookies = bool(settings.user_cookies)
        mesh = MeshSettings(
            listen_address=settings.listen_address,
            access_log=access_log_config(settings.user_headers, cookies=cookies),
            mirror_log=mirror_log_config(settings.user_headers, cookies=cookies),
            # On a laptop Envoy runs beside the controller.
            tracing=tracing_config(host_name=socket.gethostname()),
        )
        self._topology = Topology(mesh)
        self._controller = Controller(
            settings, self._distribution, Compiler(mesh), self._in_progress, self._journal
        )
        gateway = IstioWorkload.from_labels(
            *(settings.gateway_workload, settings.gateway_namespace),
            {"app": settings.gateway_workload},
        )
        self._metrics = IstioMetrics(self._topology.workload_at, lambda _: gateway)
        self._mesh = MeshServicer(
            self._controller, self._distribution, self._topology, self._in_progress, self._requests
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds discovery, access logs, load reports, spans and MeshService."""
        AdsServicer(self._distribution).register(server)
        parser_of = partial(mesh_parser, user_cookies=frozenset(self._settings.user_cookies))
        AccessLogServicer(self._requests, parser_of).register(server)
        LoadReportingServicer(self._reports).register(server)
        OtlpTraceServicer(self._traces).register(server)
        mesh_pb2_grpc.add_MeshServiceServicer_to_server(self._mesh, server)

    @asynccontextmanager
    async def run(self, health: Health) -> AsyncIterator[None]:
        """Serves the mesh while the context is open."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._journal)
            self._controller.load()
            await stack.enter_async_context(self._traces)
            port = await stack.enter_async_context(
                jaeger_api(self._traces, self._settings.host, self._settings.traces_port)
            )
            _log.info("traces", host=self._settings.host, port=port)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            following = tasks.create_task(self._metrics.follow(self._requests))
            stack.callback(following.cancel)
            noting = tasks.create_task(self._note_workloads())
            stack.callback(noting.cancel)
            await stack.enter_async_context(self._controller.running())
            health.set_all(True)
            draining = tasks.create_task(self._interrupt_at_drain(health))
            stack.callback(draining.cancel)
            yield

    async def _note_workloads(self) -> None:
        """Keeps which workload runs at which address, for records that come when it has gone."""
        serving = self._controller.served
        while True:
            self._topology.note(*serving.in_use)
            await serving.changed()

    async def _interrupt_at_drain(self, health: Health) -> None:
        """Interrupts changes when a drain begins: proxies that disconnect then open no gate."""
        async for serving in health.watch(SERVICE_NAME):
            if not serving:
                self._controller.interrupt()
                self._mesh.shut_down()
                return


def main() -> int:
    """Runs the controller until it is told to stop; returns the exit status."""
    settings = ControlSettings.from_command_line()
    return run(ControlApplication, settings)


if __name__ == "__main__":
    sys.exit(main())
