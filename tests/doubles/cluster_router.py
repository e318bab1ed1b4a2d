"""A router on a real API server, in a thread, over doubles of the mesh and of the traffic.

It follows the objects as the program does.
"""

import asyncio
import contextlib
import threading
from types import SimpleNamespace

from rollout_api import NAMESPACE
from rollout_traffic import SyntheticSource
from router_harness import FastClock
from structlog.testing import capture_logs
from traffic_router_double import TrafficRouterDouble

from tidegate.kube.client import KubeClient
from tidegate.kube.reflector import reflecting
from tidegate.kube.resources import ROLLOUTS
from tidegate.router.cluster.rollout_objects import RolloutObjects
from tidegate.router.crd_store import CrdStore
from tidegate.router.reconciler import reconciling
from tidegate.router.surroundings import LoopSettings


class ClusterRouter:
    """The router.

    Args:
        api: The API server.

    Attributes:
        mesh: The double of the mesh, with the hosts vision and llm.
        source: The double of the traffic.
    """

    def __init__(self, api):
        self._api = api
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._error = None
        self._clock = FastClock()
        self.mesh = self.source = self._reconciler = None

    @contextlib.contextmanager
    def started(self):
        """Runs while the context is open."""
        thread = threading.Thread(target=self._run, daemon=True)
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

    def until(self, holds, key):
        """Waits until something holds of a rollout's record."""
        waiting = self._until(holds, key)
        return asyncio.run_coroutine_threadsafe(waiting, self._loop).result(30)

    def command(self, key, kind):
        """Carries out a command that somebody else gave."""
        call = self._reconciler.command(key, kind, "")
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(20)

    async def _until(self, holds, key):
        registry = self._reconciler.registry
        with registry.watching() as watcher:
            async with asyncio.timeout(25):
                while (record := registry.get(key)) is None or not holds(record):
                    await watcher.take()
        return record

    def _run(self):
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
            self._ready.set()
            raise
        finally:
            self._loop.close()

    async def _serve(self):
        self.mesh = TrafficRouterDouble(
            {"vision": {"v1": 100}, "llm": {"v1": 100}}, versions=("v1", "v2"), clock=self._clock
        )
        self.source = SyntheticSource()
        async with (
            KubeClient.opened(kubeconfig=self._api.kubeconfig) as client,
            reflecting(client, ROLLOUTS, (NAMESPACE,)) as cache,
        ):
            await cache.synced()
            store = CrdStore(client, cache, "tests", (NAMESPACE,), self._clock)
            async with reconciling(
                *(lambda _: self.mesh, lambda _: self.source, store),
                settings=LoopSettings(evaluate_interval_s=0.02, evidence_interval_s=20.0),
                clock=self._clock,
            ) as self._reconciler:
                traffic = SimpleNamespace(of=lambda _: self.mesh, forget=lambda _: None)
                objects = RolloutObjects(*(client, cache, store, self._reconciler, traffic))
                following = asyncio.create_task(objects.follow())
                self._ready.set()
                await self._stop.wait()
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
