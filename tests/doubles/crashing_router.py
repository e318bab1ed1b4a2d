"""Routers in processes of their own that are killed, and the mesh in memory that outlives them.

The mesh serves a socket in the test's process. A change that a router has begun goes on when the
router dies, as in the real mesh. Each router runs the same script: apply a rollout, wait until it
has given the candidate half of the traffic, replace it by another one, wait until that is promoted.
"""

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections import Counter

import msgspec
from rollout_traffic import SyntheticSource
from router_harness import canary
from traffic_router_double import TrafficRouterDouble

from tidegate.rollout.engine.status import Phase
from tidegate.rollout.traffic import Applied, HostTraffic, TrafficSplit
from tidegate.router.faults import FaultPoint
from tidegate.router.reconciler import reconciling
from tidegate.router.sqlite_store import SqliteStore
from tidegate.router.surroundings import LoopSettings
from tidegate.traffic.router import TrafficError

FIRST, SECOND = canary(last="untilApproved"), canary(weights=(20,))
KEY = FIRST.key

_CONTEXT = multiprocessing.get_context("forkserver")
# Before Python 3.13 the fork server cannot find modules of the tests; these take the time.
_CONTEXT.set_forkserver_preload(["tidegate.router.reconciler", "tidegate.rollout.spec.reading"])


class SharedClock:
    """Fast seconds since the epoch, the same in every process."""

    def __init__(self, factor=200.0):
        self._factor = factor
        self._epoch_s, self._began_s = time.time(), time.monotonic()

    def __call__(self):
        return self._epoch_s + (time.monotonic() - self._began_s) * self._factor


class MeshServer:
    """The mesh in the test's process.

    Args:
        path: The socket.
        clock: Gives the time.
    """

    def __init__(self, path, clock):
        self.path = path
        self.mesh = TrafficRouterDouble(
            {"vision": {"v1": 100}}, versions=("v1", "v2"), clock=clock, delay_s=0.002
        )
        self._turn = asyncio.Lock()
        self._changes = set()

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()
        if self._changes:
            await asyncio.wait(self._changes)

    async def _serve(self, reader, writer):
        try:
            while line := await reader.readline():
                verb, host, split, owner = json.loads(line)
                if verb == "read":
                    answer = await self.mesh.read(host)
                else:
                    split = msgspec.convert(split, TrafficSplit)
                    change = asyncio.create_task(self._apply(host, split, owner))
                    self._changes.add(change)
                    change.add_done_callback(self._changes.discard)
                    answer = await asyncio.shield(change)
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _apply(self, host, split, owner):
        async with self._turn:
            return await self.mesh.apply(host, split, owner)


class MeshClient:
    """The TrafficRouter of a router that may be killed."""

    def __init__(self, path):
        self._path = path

    async def read(self, host):
        return await self._call(HostTraffic, "read", host, None, "")

    def may_have_changed(self):
        return True

    async def apply(self, host, split, owner, *, urgent=False):
        return await self._call(Applied, "apply", host, msgspec.to_builtins(split), owner)

    async def _call(self, kind, *arguments):
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            writer.write(json.dumps(arguments).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
        if not line:
            raise TrafficError("the mesh has gone")
        return msgspec.json.decode(line, type=kind)


def start(folder, clock, kill_at=None, passes=0):
    """Starts a router; it kills itself when it passes a fault point so many times."""
    process = _CONTEXT.Process(target=_run, args=(folder, clock, kill_at, passes), daemon=True)
    process.start()
    return process


def _run(folder, clock, kill_at, passes):
    passed = Counter()

    def at(point: FaultPoint):
        passed[point] += 1
        if point is kill_at and passed[point] == passes:
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(_script(folder, clock, at))


async def _script(folder, clock, at):
    settings = LoopSettings(evaluate_interval_s=0.01, evidence_interval_s=5.0)
    mesh, source = MeshClient(folder / "mesh.sock"), SyntheticSource(seed=os.getpid())
    async with (
        SqliteStore.opened(folder / "rollouts.sqlite", at) as store,
        reconciling(
            lambda _: mesh, lambda _: source, store, settings=settings, clock=clock, at=at
        ) as reconciler,
    ):
        if reconciler.registry.get(KEY) is None:
            await reconciler.apply(FIRST)
        with reconciler.registry.watching() as watcher:
            while True:
                record = reconciler.registry.get(KEY)
                status = record.status
                if status.generation == 1 and record.successor is None:
                    if status.stage == 1 and status.is_settled:
                        await reconciler.apply(SECOND)
                elif status.generation == 2 and status.phase is Phase.PROMOTED:
                    return
                await watcher.take()
