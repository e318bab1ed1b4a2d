"""A thousand rollouts at once: all of them move, and what that costs the router and the server."""

import asyncio
import json
import re
import ssl
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from cluster_objects import endpoint_slice, istio, pods, service, to
from faulted_rollouts import NAMESPACE

from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENDPOINT_SLICES,
    PODS,
    ROLLOUTS,
    SERVICES,
    VIRTUAL_SERVICES,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.timeout(1800),
]

COUNT = 1000
AT_ONCE = 16


async def make(world, number):
    """Makes a host with one Ready endpoint of each version, and its Rollout."""
    client, name = world.api.client, f"host-{number}"
    metadata = {"name": name, "namespace": NAMESPACE}
    slices = endpoint_slice(NAMESPACE, ready={"v1": 1, "v2": 1}, name=name)
    slices["metadata"]["labels"]["kubernetes.io/service-name"] = name
    subsets = [{"name": each, "labels": {"version": each}} for each in ("v1", "v2")]
    route = {"route": [to("v2", 0, host=name), to("v1", 100, host=name)]}
    spec = {
        "host": name,
        "baseline": "v1",
        "candidate": "v2",
        "strategy": {"manual": {"weights": [10]}},
    }
    for resource, body in (
        (SERVICES, service(NAMESPACE) | {"metadata": metadata}),
        (ENDPOINT_SLICES, slices),
        (DESTINATION_RULES, istio("DestinationRule", name, {"host": name, "subsets": subsets})),
        (VIRTUAL_SERVICES, istio("VirtualService", name, {"hosts": [name], "http": [route]})),
        (ROLLOUTS, {"metadata": metadata, "spec": spec}),
    ):
        await client.apply(resource, body, manager="test", force=True)


async def each_of(work):
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number):
        async with limit:
            await work(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(COUNT):
            tasks.create_task(one(number))


async def steps(world):
    """How many Rollouts are where."""
    listed = await world.api.client.list(ROLLOUTS, NAMESPACE)
    return Counter(
        (each.status.get("phase"), bool(each.status.get("split", {}).get("inForce")))
        for each in listed.items
        if each.metadata.name.startswith("host-")
    )


async def requests(world):
    """How many requests the API server has had that are neither watches nor the test's own."""
    server = world.api.server
    trusted = ssl.create_default_context(cafile=server.certificate)
    token = json.loads(server.kubeconfig.read_text())["users"][0]["user"]["token"]
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{server.url}/metrics", ssl=trusted) as answer,
    ):
        text = await answer.text()
    found = re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    return sum(float(number) for labels, number in found if _is_routers(labels))


def _is_routers(labels):
    is_tests = 'verb="APPLY"' in labels and 'subresource=""' in labels
    return not is_tests and 'verb="WATCH"' not in labels and 'verb="LIST"' not in labels


def used(process):
    """The memory in MiB and the seconds of CPU that a process uses."""
    folder = Path(f"/proc/{process.pid}")
    kib = next(
        int(line.split()[1])
        for line in (folder / "status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    ticks = folder.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
    return kib / 1024, sum(map(int, ticks)) / 100


async def test_a_thousand_rollouts_move_at_once(served, capsys):
    for each in pods(NAMESPACE, v1=1, v2=1):
        await served.api.client.apply(PODS, each, manager="kubelet", force=True)
    options = ("--evaluate-interval-s", "1", "--lease-duration-s", "15")
    # Without the proxy, which would be the slowest part.
    kubeconfig = served.api.routers_kubeconfig()
    with served.router(*options, kubeconfig=kubeconfig) as router:
        await served.api.until_leads(router.identity)
        idle_mib, _ = used(router.process)
        began_s, calls = time.monotonic(), await requests(served)
        await each_of(lambda number: make(served, number))
        made_s = time.monotonic() - began_s
        async with asyncio.timeout(900):
            while (await steps(served))[("Progressing", True)] < COUNT:
                await asyncio.sleep(2)
        moved_s = time.monotonic() - began_s
        moving = await requests(served) - calls
        mib, cpu_s = used(router.process)
        calls, rest_s = await requests(served), 60
        await asyncio.sleep(rest_s)
        resting = (await requests(served) - calls) / rest_s
        rest_mib, rest_cpu_s = used(router.process)
        assert router.process.poll() is None
    with capsys.disabled():
        sys.stdout.write(
            f"\n{COUNT} rollouts: made in {made_s:.0f} s, all in force after {moved_s:.0f} s with"
            f" {moving / COUNT:.1f} requests each ({moving / moved_s:.0f}/s), {cpu_s:.0f} s of CPU;"
            f" memory {idle_mib:.0f} MiB idle, {mib:.0f} MiB, {rest_mib:.0f} MiB at rest;"
            f" at rest {resting:.1f} requests/s and {(rest_cpu_s - cpu_s) / rest_s:.2f} CPUs\n"
        )
