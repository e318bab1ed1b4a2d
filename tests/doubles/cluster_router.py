"""A router on a real API server, in a thread, over doubles of the mesh and of the traffic.

It does what the objects say: it applies their specs and carries out their commands.
"""

import asyncio
import contextlib
import threading

from rollout_api import NAMESPACE
from rollout_traffic import SyntheticSource
from router_harness import FastClock
from structlog.testing import capture_logs
from traffic_router_double import TrafficRouterDouble

from tidegate.kube.client import KubeClient
from tidegate.kube.reflector import reflecting
from tidegate.kube.resources import ROLLOUTS
from tidegate.rollout.crd.command import (
    COMMAND_ANNOTATION,
    CommandAnswer,
    CommandError,
    read_command,
)
from tidegate.rollout.crd.mapping import rollout_of
from tidegate.router.crd_store import CrdStore
from tidegate.router.errors import RefusedError
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
                changed = asyncio.Queue()
                cache.on_change(lambda key, old, new: changed.put_nowait((key, old, new)))
                following = asyncio.create_task(self._follow(cache, store, changed))
                self._ready.set()
                await self._stop.wait()
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following

    async def _follow(self, cache, store, changed):
        while True:
            key, old, new = await changed.get()
            if new is None:
                await self._reconciler.forget(key)
            elif old is None or _asked(old) != _asked(new):
                await self._handle(key, new, store)

    async def _handle(self, key, manifest, store):
        values = ROLLOUTS.body(
            {
                "metadata": {
                    "name": manifest.metadata.name,
                    "namespace": manifest.metadata.namespace,
                    "labels": manifest.metadata.labels,
                    "annotations": manifest.metadata.annotations,
                },
                "spec": manifest.spec,
            }
        )
        await self._reconciler.apply(rollout_of(values))
        await store.observe(key)
        text = manifest.metadata.annotations.get(COMMAND_ANNOTATION)
        answered = store.answered(key)
        if not text or (answered is not None and answered.id in text):
            return
        try:
            given = read_command(text)
        except CommandError as error:
            await store.answer(key, error.answer)
            return
        command = given.command
        try:
            await self._reconciler.command(key, command.kind, command.reason, given.stage, given.id)
        except RefusedError as error:
            await store.answer(key, CommandAnswer(id=given.id, accepted=False, message=str(error)))


def _asked(manifest):
    metadata = manifest.metadata
    return metadata.generation, metadata.annotations, metadata.labels
