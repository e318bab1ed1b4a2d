"""Steady load on several hosts behind one gateway, from a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Final, Self

import grpc
from harm import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Callers"]

_DEADLINE_S: Final = 5.0
_CONNECTIONS: Final = 2
_INJECTED: Final = "injected "


class Callers:
    """Calls each host at a steady rate while the context is open.

    Args:
        port: The gateway's loopback port.
        hosts: The hosts.
        rate: Calls a second of each host.
    """

    def __init__(self, port: int, hosts: Sequence[str], rate: float) -> None:
        self._port = port
        self._hosts = tuple(hosts)
        self._rate = rate
        self._calls: dict[str, list[Call]] = {each: [] for each in hosts}
        self._errors: dict[str, list[str]] = {each: [] for each in hosts}
        self._stop = threading.Event()
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def marks(self) -> dict[str, int]:
        """How many calls of each host have ended."""
        return {host: len(calls) for host, calls in self._calls.items()}

    def calls(self, host: str, since: int) -> list[Call]:
        """The calls of a host that ended after such a mark."""
        return self._calls[host][since:]

    def errors(self, host: str) -> list[str]:
        """The first messages of calls that were lost."""
        return self._errors[host]

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for host in self._hosts:
                tasks.create_task(self._call_host(host, tasks))

    async def _call_host(self, host: str, tasks: asyncio.TaskGroup) -> None:
        options = [
            ("grpc.default_authority", host),
            ("grpc.use_local_subchannel_pool", 1),
            # Every failure counts.
            ("grpc.enable_retries", 0),
        ]
        channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options)
            for _ in range(_CONNECTIONS)
        ]
        methods = [each.unary_unary("/bench.Echo/Call") for each in channels]
        loop = asyncio.get_running_loop()
        due_s, number = loop.time(), 0
        running: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            task = tasks.create_task(self._call(host, methods[number % len(methods)]))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
            due_s += 1 / self._rate
            await asyncio.sleep(max(0.0, due_s - loop.time()))
        if running:
            await asyncio.wait(running)
        for each in channels:
            await each.close()

    async def _call(self, host: str, method: grpc.aio.UnaryUnaryMultiCallable) -> None:
        began_s = time.monotonic()
        version, ok = "", True
        try:
            answer: bytes = await method(b"", timeout=_DEADLINE_S)
            version = answer.decode()
        except grpc.aio.AioRpcError as error:
            ok, told = False, error.details() or ""
            if told.startswith(_INJECTED):
                version = told.removeprefix(_INJECTED)
            elif len(self._errors[host]) < 20:
                self._errors[host].append(f"{error.code().name}: {told}")
        ended_s = time.monotonic()
        self._calls[host].append(Call(ended_s - self._began_s, ended_s - began_s, version, ok))
