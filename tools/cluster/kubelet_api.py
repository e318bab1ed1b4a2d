"""The part of the kubelet's HTTP API that `kubectl logs` calls, by way of the API server."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from aiohttp import web

from cluster.settings import BRIDGE_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["KUBELET_PORT", "serve_kubelet_api"]

KUBELET_PORT: Final = 10250
_POLL_S: Final = 0.2
_CHUNK_BYTES: Final = 1 << 16


async def serve_kubelet_api(folder: Path, is_up: Callable[[str, str], bool]) -> None:
    """Starts the server; it serves until the process ends.

    Args:
        folder: The folder of the cluster, with the logs of Pods and the certificate.
        is_up: Whether a Pod, by namespace and name, still runs.
    """

    async def logs(request: web.Request) -> web.StreamResponse:
        names = [request.match_info[each] for each in ("namespace", "pod", "container")]
        path = folder.joinpath("pods", *names[:2], f"{names[2]}.log")
        if ".." in names or not path.exists():
            raise web.HTTPNotFound(text=f"no log of container {names[2]}")
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        query = request.query
        follow = query.get("follow") == "true"
        with path.open("rb") as file:
            if "tailLines" in query:
                await answer.write(_last_lines(file.read(), int(query["tailLines"])))
            while True:
                # Asked first: what a Pod writes last is then still sent.
                goes_on = follow and is_up(names[0], names[1])
                while chunk := file.read(_CHUNK_BYTES):
                    await answer.write(chunk)
                if not goes_on:
                    return answer
                await asyncio.sleep(_POLL_S)

    application = web.Application()
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    runner = web.AppRunner(application)
    await runner.setup()
    secured = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    secured.load_cert_chain(folder / "apiserver.crt", folder / "apiserver.key")
    await web.TCPSite(runner, BRIDGE_ADDRESS, KUBELET_PORT, ssl_context=secured).start()


def _last_lines(text: bytes, count: int) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join(lines[-count:]) if count else b""
