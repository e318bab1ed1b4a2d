"""What ends a router, or what it stands on, in tests of its faults."""

import asyncio
import base64

import aiohttp
from faulty_api import Fault

from tidegate.kube.resources import ROLLOUTS

LEASE = ("--lease-duration-s", "2")
"""A lease that another replica takes over soon."""
WAIT_S = 40.0


def is_write(call):
    return call.method != "GET" and not call.path.endswith("/events") and "/leases" not in call.path


class Deaths:
    """Kills the router that leads at the n-th write."""

    def __init__(self, faulty, number, *, before):
        self._faulty = faulty
        self._number = number
        self._before = before
        self._victim = None
        self._write = None
        self.writes = []

    def watch(self, victim):
        self._victim = victim
        self._faulty.fault = self._fault
        self._faulty.carried_out = self._carried_out

    def _fault(self, call):
        if not is_write(call):
            return None
        self.writes.append(call)
        if len(self.writes) != self._number:
            return None
        self._write = call
        if self._before:
            self._victim.kill()
            return Fault.DROP
        return None

    def _carried_out(self, call):
        if call is self._write and not self._before:
            self._victim.kill()


async def wipe(world, name):
    """Removes a Rollout from etcd, past the API server and the finalizer."""
    key = f"/registry/{ROLLOUTS.group}/{ROLLOUTS.plural}/models/{name}".encode()
    body = {"key": base64.b64encode(key).decode()}
    async with (
        aiohttp.ClientSession(world.api.server.etcd_url) as etcd,
        etcd.post("/v3/kv/deleterange", json=body) as answer,
    ):
        assert (await answer.json())["deleted"] == "1"


async def says(router, resource):
    """Waits until the log names what the router must not do."""
    words = rf"resource \"{resource}\""
    try:
        async with asyncio.timeout(WAIT_S):
            while words not in router.log:
                assert router.process.poll() is None, router.log[-3000:]
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{words}: {router.log[-5000:]}") from None
