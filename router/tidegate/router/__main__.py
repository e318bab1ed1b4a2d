"""``python -m tidegate.router``: starts the router."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from tidegate.chassis.server import run
from tidegate.mesh.v1 import mesh_pb2_grpc
from tidegate.rollout.spec.model import EvidenceFrom
from tidegate.rollout.v1 import rollout_pb2_grpc
from tidegate.router.files import RolloutFiles
from tidegate.router.metrics import publishing
from tidegate.router.reconciler import reconciling
from tidegate.router.service import SERVICE_NAME, RolloutServicer
from tidegate.router.settings import RouterSettings
from tidegate.router.sources.access_log import AccessLogSource
from tidegate.router.sources.prometheus import PrometheusSource
from tidegate.router.sources.record_streams import RecordStreams
from tidegate.router.sqlite_store import SqliteStore
from tidegate.router.surroundings import LoopSettings
from tidegate.traffic.mesh_router import MeshRouter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tidegate.chassis.health import Health
    from tidegate.rollout.spec.model import Rollout
    from tidegate.router.sources.source import TrafficSource

__all__ = ["RouterApplication", "main"]


class RouterApplication:
    """Everything that the router serves.

    The router starts without the mesh's controller and waits for it: a rollout then says what it
    waits for.

    Args:
        settings: The router's settings.
    """

    service_names = (SERVICE_NAME,)

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._files: RolloutFiles | None = None
        self._rollouts = RolloutServicer(self._file_problems)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds RolloutService."""
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(self._rollouts, server)

    @asynccontextmanager
    async def run(self, health: Health) -> AsyncIterator[None]:
        """Runs the rollouts while the context is open."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(SqliteStore.opened(settings.store_file))
            channel = await stack.enter_async_context(
                # gRPC would wait up to two minutes for a controller that restarts.
                grpc.aio.insecure_channel(
                    settings.controller, [("grpc.max_reconnect_backoff_ms", 1000)]
                )
            )
            controller = mesh_pb2_grpc.MeshServiceStub(channel)
            streams = RecordStreams({settings.controller: controller})
            await stack.enter_async_context(streams.running())
            access_log = await stack.enter_async_context(AccessLogSource(streams).running())
            prometheus = await stack.enter_async_context(PrometheusSource().running())

            def source_of(rollout: Rollout) -> TrafficSource:
                counted = rollout.spec.evidence.source is EvidenceFrom.PROMETHEUS
                return prometheus if counted else access_log

            mesh = MeshRouter(channel, settings.controller)
            reconciler = await stack.enter_async_context(
                reconciling(
                    *(lambda _: mesh, source_of, store),
                    settings=LoopSettings(
                        evaluate_interval_s=settings.evaluate_interval_s,
                        evidence_interval_s=settings.evidence_interval_s,
                        read_timeout_s=settings.read_timeout_s,
                        apply_timeout_s=settings.apply_timeout_s,
                        prometheus_url=settings.prometheus_url,
                    ),
                )
            )
            stack.enter_context(publishing(reconciler.registry))
            self._files = RolloutFiles(settings.rollouts, reconciler)
            stack.enter_context(self._rollouts.serving(reconciler))
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            following = tasks.create_task(self._files.follow(settings.file_interval_s))
            stack.callback(following.cancel)
            health.set_all(True)
            ending = tasks.create_task(self._end_streams_at_drain(health))
            stack.callback(ending.cancel)
            yield

    def _file_problems(self) -> Mapping[str, str]:
        return {} if self._files is None else self._files.problems

    async def _end_streams_at_drain(self, health: Health) -> None:
        async for serving in health.watch(SERVICE_NAME):
            if not serving:
                self._rollouts.shut_down()
                return


def main() -> int:
    """Runs the router until it is told to stop; returns the exit status."""
    settings = RouterSettings.from_command_line()
    return run(RouterApplication, settings)


if __name__ == "__main__":
    sys.exit(main())
