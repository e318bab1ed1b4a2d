"""The real RolloutService in a thread, over doubles of the mesh and of the traffic.

Time passes a hundred times as fast for the rollouts, so that evidence comes within a second.
"""

import asyncio
import contextlib
import threading
from contextlib import asynccontextmanager
from pathlib import Path

from router_harness import FastClock, Router
from structlog.testing import capture_logs

from tidegate.chassis.server import running
from tidegate.rollout.v1 import rollout_pb2_grpc
from tidegate.router.service import SERVICE_NAME, RolloutServicer
from tidegate.router.settings import RouterSettings


class RolloutServer:
    """A server that a test talks to from its own thread.

    Args:
        folder: Where its store is.
        port: Its port; 0 takes a free one.
        traffic: The traffic of the mesh's double, as an earlier server has left it.

    Attributes:
        address: Its address.
        router: The router in it. Its doubles may be changed from the test's thread by `do`.
    """

    def __init__(self, folder: Path, port: int = 0, traffic=None) -> None:
        self._folder = folder
        self._port = port
        self._traffic = traffic
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.address = ""
        self.router = None

    def do(self, work):
        """Runs a function on the server's thread."""

        async def call():
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(20)

    def until(self, holds, key="models/vision"):
        """Waits until something holds of a rollout's record."""
        waiting = self.router.until(holds, key)
        return asyncio.run_coroutine_threadsafe(waiting, self._loop).result(30)

    def until_reason(self, reason, key="models/vision"):
        """Waits until a rollout waits for something."""
        return self.until(lambda record: record is not None and record.status.reason == reason, key)

    @contextlib.contextmanager
    def started(self):
        """Serves while the context is open."""
        thread = threading.Thread(target=self._run, daemon=True)
        # The server's log would stand between the lines of the command.
        with capture_logs():
            thread.start()
            try:
                assert self._ready.wait(20)
                if self._error is not None:
                    raise self._error
                yield self
            finally:
                self._loop.call_soon_threadsafe(self._stop.set)
                thread.join(20)
                assert not thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
            self._ready.set()
            raise
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self.router = Router(self._folder / "rollouts.sqlite", FastClock())
        if self._traffic is not None:
            self.router.mesh.traffic = self._traffic
        settings = RouterSettings(
            grpc_port=self._port,
            metrics_port=0,
            host="127.0.0.1",
            drain_delay_s=0,
            drain_hold_s=0,
            drain_deadline_s=1,
        )
        async with running(_Application(self.router), settings) as server:
            self.address = f"127.0.0.1:{server.grpc_port}"
            self._ready.set()
            await self._stop.wait()


class _Application:
    service_names = (SERVICE_NAME,)

    def __init__(self, router: Router) -> None:
        self._router = router
        self._servicer = RolloutServicer()

    def register(self, server) -> None:
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(self._servicer, server)

    @asynccontextmanager
    async def run(self, health):
        async with self._router.running() as reconciler:
            with self._servicer.serving(reconciler):
                health.set_all(True)
                yield
            self._servicer.shut_down()
