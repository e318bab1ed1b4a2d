"""The router's program against a real controller and a real Envoy under load, killed on the way."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import grpc
from running_mesh import made, started, until

from tidegate.mesh.v1 import mesh_pb2
from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.messages import spec_message
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc

ROLLOUT = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: vision, namespace: models}
spec:
  host: vision
  baseline: v1
  candidate: v2
  strategy:
    canary: {steps: [{weight: 10}, {pause: {for: 1s}}, {weight: 50}, {pause: {for: 1s}}]}
  objectives: [{signal: grpcFailures, margin: 10%}]
"""
NAME = {"namespace": "models", "name": "vision"}
KILLS = 4


class RouterProcess:
    """The router in a process of its own, which the test kills and starts again."""

    def __init__(self, mesh):
        self._mesh = mesh
        self._ports = mesh.folder / "router.json"
        self.process = None

    def spawn(self):
        flags = {
            "grpc_port": 0,
            "metrics_port": 0,
            "controller": self._mesh.controller.address,
            "store_file": self._mesh.folder / "rollouts.sqlite",
            "port_file": self._ports,
            "evaluate_interval_s": 0.1,
            "drain_delay_s": 0,
        }
        self._ports.unlink(missing_ok=True)
        with (self._mesh.folder / "router.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tidegate.router"),
                    *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()),
                ],
                stdout=log,
                stderr=log,
            )

    def is_up(self):
        """Whether it has opened its ports."""
        return self._ports.exists() and self._ports.read_text()

    async def kill(self):
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    @asynccontextmanager
    async def service(self):
        await until(self.is_up)
        port = json.loads(self._ports.read_text())["grpc"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield rollout_pb2_grpc.RolloutServiceStub(channel)


class SeenWeights:
    """The candidate's weights that the controller has in effect, without repeats."""

    def __init__(self, mesh):
        self._stub = mesh.controller.stub
        self.weights = []

    async def follow(self):
        request = mesh_pb2.GetTrafficRequest(host="vision")
        while True:
            split = (await self._stub.GetTraffic(request)).split
            weight = sum(each.weight for each in split.weights if each.subset == "v2")
            if self.weights[-1:] != [weight]:
                self.weights.append(weight)
            await asyncio.sleep(0.005)


async def test_a_killed_router_goes_on_and_no_request_is_lost(tmp_path):
    chance = random.Random(1)
    async with made(tmp_path) as mesh, started(mesh), mesh.load() as load:
        router, seen = RouterProcess(mesh), SeenWeights(mesh)
        following = asyncio.create_task(seen.follow())
        router.spawn()
        try:
            async with router.service() as service:
                rollout = spec_message(read_rollouts(ROLLOUT, "test")[0])
                await until(lambda: applied(service, rollout))
            for _ in range(KILLS):
                await asyncio.sleep(chance.uniform(0.0, 1.5))
                await router.kill()
                router.spawn()
                await until(router.is_up)
            async with router.service() as service:
                history = await until(lambda: history_to_the_end(service))
        finally:
            following.cancel()
            router.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(router.process.wait, 30)
        assert not load.failures
        assert seen.weights == [0.0, 10.0, 50.0, 100.0]
        await load.comes_to("v2")
    assert [each.number for each in history] == list(range(1, len(history) + 1))
    stages = [each for each in history if each.kind == EventKind.STAGE_ENTERED.value]
    assert [each.message.split(":")[0] for each in stages] == [
        *("stage 1 of 3", "stage 2 of 3", "stage 3 of 3")
    ]
    assert history[-1].kind == EventKind.PROMOTED.value


async def test_an_abort_takes_traffic_back_although_a_proxy_is_frozen_and_the_file_is_broken(
    tmp_path,
):
    # Each stage of the second step would wait 30 s for the frozen proxy.
    text = ROLLOUT.replace("{pause: {for: 1s}}", "{pause: {untilApproved: true}}")
    async with made(tmp_path) as mesh, started(mesh), mesh.load() as load:
        router = RouterProcess(mesh)
        router.spawn()
        try:
            async with router.service() as service:
                rollout = spec_message(read_rollouts(text, "test")[0])
                await until(lambda: applied(service, rollout))
                await mesh.status_is(lambda status: shares_of(status) == {"v1": 0.9, "v2": 0.1})
                proxy = await mesh.attach("frozen")
                file = mesh.objects / "mesh.yaml"
                file.write_text(file.read_text() + "\n---\nkind: [\n")
                await mesh.status_is(lambda status: status.problems)
                await until(lambda: promoted(service))
                await mesh.stage_is(mesh_pb2.STAGE_ROUTES)
                began = time.monotonic()
                await service.Abort(rollout_pb2.AbortRequest(**NAME))
                await load.comes_to("v1")
                assert time.monotonic() - began < 15
                history = await until(lambda: history_to(service, EventKind.ABORTED))
        finally:
            router.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(router.process.wait, 30)
        assert not load.failures
        in_force = [each.message for each in history if each.kind == EventKind.SPLIT_IN_FORCE.value]
        assert "not yet in frozen" in in_force[-1]
        assert not any(each.kind == EventKind.SPLIT_FAILED.value for each in history)
        proxy.call.cancel()


def shares_of(status):
    return {each.subset: each.share for each in status.routes[0].destinations}


async def promoted(service):
    try:
        return await service.Promote(rollout_pb2.PromoteRequest(**NAME))
    except grpc.aio.AioRpcError:
        return None


async def history_to(service, kind):
    events = (await service.GetHistory(rollout_pb2.GetHistoryRequest(**NAME))).events
    return events if events and events[-1].kind == kind.value else None


async def applied(service, rollout):
    try:
        return await service.Apply(rollout_pb2.ApplyRequest(rollout=rollout))
    except grpc.aio.AioRpcError as error:
        return still_loading(error)


async def history_to_the_end(service):
    try:
        events = (await service.GetHistory(rollout_pb2.GetHistoryRequest(**NAME))).events
    except grpc.aio.AioRpcError as error:
        return still_loading(error)
    assert all(each.kind not in ("Aborted", "Refused") for each in events), events
    return events if events and events[-1].kind == EventKind.PROMOTED.value else None


def still_loading(error):
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        raise error
