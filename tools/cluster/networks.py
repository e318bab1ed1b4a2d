"""Network namespaces: sockets in another namespace, links of Pods, and forwarded ports.

A socket stays in the network namespace of the thread that made it. So a thread that has entered a
namespace can make sockets for an event loop that runs elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from cluster.settings import BRIDGE_ADDRESS, ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "NETWORKS",
    "Network",
    "add_pod_network",
    "forward",
    "listening_socket",
    "remove_pod_network",
    "run_tool",
    "set_up_bridge",
]

NETWORKS: Final = Path("/run/netns")
_T = TypeVar("_T")
_CLONE_NEWNET: Final = 0x40000000
_BRIDGE: Final = "pods"
_CHUNK_BYTES: Final = 1 << 16
# A connection that is refused this long has no server.
_CONNECT_TIMEOUT_S: Final = 5.0


class Network:
    """A network namespace, as a place to make sockets in.

    Args:
        descriptor: An open descriptor of the namespace.
    """

    def __init__(self, descriptor: int) -> None:
        self._thread = ThreadPoolExecutor(1, "network", _enter, (descriptor,))

    @classmethod
    def named(cls, name: str) -> Self:
        """The namespace that `ip netns add` gave this name."""
        return cls(os.open(NETWORKS / name, os.O_RDONLY | os.O_CLOEXEC))

    async def call(self, make: Callable[[], _T]) -> _T:
        """Runs a function in the namespace."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, make)

    def close(self) -> None:
        """Ends the thread. Sockets that it made stay open."""
        self._thread.shutdown(wait=False)


def listening_socket(address: str, port: int = 0) -> socket.socket:
    """Makes a TCP socket that listens; port 0 takes a free one."""
    made = socket.create_server((address, port), backlog=512)
    made.setblocking(False)
    return made


async def forward(listener: socket.socket, connect: Callable[[], Awaitable[socket.socket]]) -> None:
    """Forwards each connection of a listener, until cancelled.

    Args:
        listener: A listening socket, which this function closes in the end.
        connect: Opens the connection to forward to; raises OSError if it cannot.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                there = await connect()
            far_reader, far_writer = await asyncio.open_connection(sock=there)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, far_writer))
                tasks.create_task(_copy(far_reader, writer))
        writer.close()

    async with await asyncio.start_server(serve, sock=listener) as server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


async def set_up_bridge() -> None:
    """Gives this network namespace the bridge that joins all Pods."""
    await _ip(
        "link set lo up",
        f"link add {_BRIDGE} type bridge",
        f"addr add {BRIDGE_ADDRESS}/16 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
    )


async def add_pod_network(name: str, number: int, address: str) -> None:
    """Makes a network namespace with a link to the bridge.

    Args:
        name: The name of the namespace.
        number: A number that no other Pod has had.
        address: Its address on the bridge.
    """
    await _ip(
        f"netns add {name}",
        f"link add veth{number} type veth peer name eth0 netns {name}",
        f"link set veth{number} master {_BRIDGE} up",
    )
    await _ip(
        f"addr add {address}/16 dev eth0",
        "link set lo up",
        "link set eth0 up",
        # The address of a Service is on no link. A packet to it needs a route before iptables
        # sends it to the sidecar.
        f"route add default via {BRIDGE_ADDRESS}",
        namespace=name,
    )


async def remove_pod_network(name: str) -> None:
    """Removes a network namespace and its link."""
    await _ip(f"netns del {name}")


async def _ip(*lines: str, namespace: str = "") -> None:
    inside = ("-n", namespace) if namespace else ()
    await run_tool("ip", *inside, "-batch", "-", given="\n".join(lines))


async def run_tool(*command: str, given: str = "") -> str:
    """Runs a program to its end, and returns its output.

    Raises:
        ClusterError: It failed; the message has its output.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(given.encode() or None)
    if process.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {output.decode().strip()}")
    return output.decode()


def _enter(descriptor: int) -> None:
    # Python 3.12 has os.setns.
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter a network namespace: {os.strerror(number)}")
