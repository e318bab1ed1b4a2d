"""A router in the test's process, with doubles of the mesh and of the source around it."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

from rollout_traffic import SyntheticSource
from traffic_router_double import TrafficRouterDouble

from tidegate.rollout.spec.reading import read_rollouts
from tidegate.router.reconciler import reconciling
from tidegate.router.sqlite_store import SqliteStore
from tidegate.router.surroundings import LoopSettings

CANARY = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {{name: {name}, namespace: models}}
spec:
  host: {host}
  baseline: v1
  candidate: v2
  strategy:
    canary: {{steps: [{steps}]}}
  objectives: [{{signal: grpcFailures, tolerate: 2x}}]
"""
MANUAL = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {{name: {name}, namespace: models}}
spec:
  host: {host}
  baseline: v1
  candidate: v2
  strategy: {{manual: {{weights: {weights}}}}}
"""


def canary(name="vision", host="vision", weights=(10, 50), last="untilEvidence"):
    """A canary that waits for evidence at each weight, and for something else at the last one."""
    waits = ["untilEvidence"] * (len(weights) - 1) + [last]
    pairs = zip(weights, waits, strict=True)
    steps = ", ".join(
        f"{{weight: {weight}}}, {{pause: {{{gate}: true}}}}" for weight, gate in pairs
    )
    return read_rollouts(CANARY.format(name=name, host=host, steps=steps), "test")[0]


def manual(name="vision", host="vision", weights=(10, 50)):
    return read_rollouts(MANUAL.format(name=name, host=host, weights=list(weights)), "test")[0]


class FastClock:
    """Seconds since the epoch that pass a hundred times as fast."""

    def __init__(self, factor=100.0):
        self._factor = factor
        self._epoch_s, self._began_s = time.time(), time.monotonic()

    def __call__(self):
        return self._epoch_s + (time.monotonic() - self._began_s) * self._factor


class Router:
    """A router in the test's process, with doubles around it."""

    def __init__(self, path, clock):
        self.path = path
        self.clock = clock
        self.mesh = TrafficRouterDouble(
            {"vision": {"v1": 100}, "llm": {"v1": 100}}, versions=("v1", "v2"), clock=clock
        )
        self.source = SyntheticSource()
        self.settings = LoopSettings(evaluate_interval_s=0.01, evidence_interval_s=0.0)

    @asynccontextmanager
    async def running(self, **options):
        async with (
            SqliteStore.opened(self.path) as self.store,
            reconciling(
                *(lambda _: self.mesh, lambda _: self.source, self.store),
                settings=self.settings,
                clock=self.clock,
                **options,
            ) as self.reconciler,
        ):
            yield self.reconciler

    def settings_with(self, **settings):
        return replace(self.settings, **settings)

    def record(self, key="models/vision"):
        return self.reconciler.registry.get(key)

    async def until(self, holds, key="models/vision", timeout_s=20):
        """Waits until something holds of a rollout."""
        with self.reconciler.registry.watching() as watcher:
            async with asyncio.timeout(timeout_s):
                while not holds(self.record(key)):
                    await watcher.take()
        return self.record(key)

    async def until_phase(self, *phases, key="models/vision"):
        return await self.until(lambda record: record.status.phase in phases, key)
