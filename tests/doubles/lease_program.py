"""A program that works while it holds a lease: it writes a line each 20 ms.

    python lease_program.py KUBECONFIG NAMESPACE IDENTITY FILE DURATION RENEW RETRY

Lines are "IDENTITY EVENT SECONDS", of the machine's monotonic clock. It writes "write" only if the
fenced client let a write to the API server through.
"""

import asyncio
import itertools
import signal
import sys
import time
from pathlib import Path

from kube_objects import CONFIG_MAPS

from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError, NotFoundError
from tidegate.kube.lease import LeaseElector, LeaseLostError
from tidegate.kube.lease_record import LeaseSettings


async def write(client, data):
    """Writes an object in the version that was read: a late write is refused."""
    body = {"metadata": {"name": "work"}, "data": data}
    try:
        read = await client.get(CONFIG_MAPS, "work")
    except NotFoundError:
        await client.create(CONFIG_MAPS, body)
    else:
        body["metadata"]["resourceVersion"] = read.metadata.resource_version
        await client.replace(CONFIG_MAPS, body)


async def main(kubeconfig, namespace, identity, file, duration, renew, retry):
    def note(event):
        with Path(file).open("a") as log:
            log.write(f"{identity} {event} {time.monotonic()}\n")

    async with KubeClient.opened(kubeconfig=Path(kubeconfig), namespace=namespace) as client:
        elector = LeaseElector(
            *(client, "tests"),
            identity=identity,
            settings=LeaseSettings(int(duration), float(renew), float(retry)),
        )
        fenced = client.fenced(lambda: elector.is_leader)

        async def work():
            note("start")
            try:
                for number in itertools.count():
                    try:
                        await write(fenced, {"by": identity, "number": str(number)})
                    except KubeError:
                        note("refused")
                    else:
                        note("write")
                    await asyncio.sleep(0.02)
            finally:
                note("stop")

        async def compete():
            while True:
                try:
                    await elector.run(work)
                except LeaseLostError:
                    note("lost")

        competing = asyncio.create_task(compete())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, competing.cancel)
        note("competes")
        await asyncio.wait({competing})


asyncio.run(main(*sys.argv[1:]))
