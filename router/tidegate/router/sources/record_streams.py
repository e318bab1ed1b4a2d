"""The records of finished requests, read from every server that receives access logs.

On a laptop this is the mesh's controller. On a cluster it is each replica of the router, and the
replicas come and go. For each host that somebody listens to, there is one call of
`MeshService.WatchRequests` to each receiver, which sends a record of every request when it ends.

After a break a stream begins again, and waits twice as long after each failure. What ended
meanwhile is lost: its number is estimated from the rate before the break, and goes to the
listeners with the records that the receiver dropped. So are the records that the receiver may have
had and not sent before it broke: those of the time since its last message, up to `UNSENT_S`. The
proxies of a receiver that has gone send their log to another one after about `REROUTED_S`; so no
more than that counts as lost.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, Self

import grpc

from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tidegate.runtime.logging import get_logger

__all__ = ["REROUTED_S", "UNSENT_S", "RecordListener", "RecordStreams", "RecordTap"]

_log = get_logger(__name__)

REROUTED_S: Final = 2.0
"""How long proxies take to send their log to another receiver, in seconds."""

UNSENT_S: Final = 2.0
"""How long records take from a proxy to here, at most, in seconds; it sends them each second."""

_NOT_YET: Final = "the records of requests are not watched yet"
_FIRST_WAIT_S: Final = 0.2
# A receiver that comes back has records that nobody has counted.
_LONGEST_WAIT_S: Final = 2.0
_RATE_OVER_S: Final = 30.0


class RecordListener(Protocol):
    """Takes the records of a host."""

    def receive(self, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        """Takes records, in the order in which one receiver got them."""
        ...

    def lose(self, count: int) -> None:
        """Notes records that are lost."""
        ...


class RecordTap(Protocol):
    """Sees the records of all hosts that somebody listens to."""

    def receive(self, host: str, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        """Takes records of a host."""
        ...

    def forget(self, host: str) -> None:
        """Notes that nobody listens to a host any more."""
        ...


class RecordStreams:
    """Reads the records of hosts for whoever listens.

    Args:
        receivers: The servers that receive access logs, by their address.
        tap: Sees all records too.
        kept_s: How long receivers keep records for streams that begin later, in seconds.

    Attributes:
        kept_s: The same.
    """

    def __init__(
        self,
        receivers: "Mapping[str, mesh_pb2_grpc.MeshServiceAsyncStub] | None" = None,
        tap: RecordTap | None = None,
        *,
        kept_s: float = 0.0,
    ) -> None:
        self.kept_s = kept_s
        self._receivers = dict(receivers or {})
        self._tap = tap
        self._hosts: dict[str, _HostStreams] = {}
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Reads records while the context is open."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for host in self._hosts.values():
                host.follow(self._receivers, tasks)
            try:
                yield self
            finally:
                self._tasks = None
                for host in self._hosts.values():
                    host.stop()

    def set_receivers(self, receivers: "Mapping[str, mesh_pb2_grpc.MeshServiceAsyncStub]") -> None:
        """Reads from these receivers from now on; streams to those that stay go on."""
        self._receivers = dict(receivers)
        for host in self._hosts.values():
            host.follow(self._receivers, self._tasks)

    def listen(self, host: str, listener: RecordListener, since_s: float | None = None) -> None:
        """Gives a listener the records of a host from now on.

        Args:
            host: The host.
            listener: The listener.
            since_s: For the first listener of a host: asks each receiver also for the records of
                requests that began from then on, as far as it keeps them.
        """
        streams = self._hosts.get(host)
        if streams is None:
            streams = self._hosts[host] = _HostStreams(host, self._tap, since_s)
            streams.follow(self._receivers, self._tasks)
        streams.listeners.append(listener)

    def leave(self, host: str, listener: RecordListener) -> None:
        """Gives a listener no more records; the last one that leaves a host ends its streams."""
        streams = self._hosts[host]
        streams.listeners.remove(listener)
        if not streams.listeners:
            streams.stop()
            del self._hosts[host]
            if self._tap is not None:
                self._tap.forget(host)

    def problem(self, host: str) -> str:
        """Says why records of a host are missing now; empty if nothing is known to be missing."""
        return self._hosts[host].problem

    async def watching(self, host: str) -> None:
        """Waits until records of a host arrive from all receivers."""
        await self._hosts[host].watching()


class _HostStreams:
    """The streams of one host."""

    def __init__(self, host: str, tap: RecordTap | None, since_s: float | None) -> None:
        self._since_s = since_s
        self._began_s = time.time()
        self._read_before: set[str] = set()
        self.listeners: list[RecordListener] = []
        self._host = host
        self._tap = tap
        self._streams: dict[str, _Stream] = {}

    @property
    def problem(self) -> str:
        if not self._streams:
            return "no receiver of access logs is known yet"
        problems = {address: each.problem for address, each in self._streams.items()}
        if len(problems) == 1:
            return next(iter(problems.values()))
        return "; ".join(f"{address}: {text}" for address, text in problems.items() if text)

    def follow(
        self,
        receivers: "Mapping[str, mesh_pb2_grpc.MeshServiceAsyncStub]",
        tasks: asyncio.TaskGroup | None,
    ) -> None:
        for address in self._streams.keys() - receivers.keys():
            gone = self._streams.pop(address)
            self.lose(gone.lost_for_good())
            gone.stop()
        later = bool(self._read_before)
        for address, stub in receivers.items():
            stream = self._streams.get(address)
            if stream is None or stream.stub is not stub:
                if stream is not None:
                    stream.stop()
                stream = self._streams[address] = _Stream(
                    self._host, stub, self, self._since_of(address, later=later)
                )
                self._read_before.add(address)
            if tasks is not None:
                stream.start(tasks)

    def _since_of(self, address: str, *, later: bool) -> float | None:
        """Since when to ask a receiver for records that it keeps; None for later ones only."""
        if address in self._read_before:
            return None
        if self._since_s is None and later:
            # Proxies may have found the new receiver before it was known here.
            return self._began_s
        return self._since_s

    def stop(self) -> None:
        for stream in self._streams.values():
            stream.stop()

    async def watching(self) -> None:
        for stream in list(self._streams.values()):
            await stream.connected.wait()

    def receive(self, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        if self._tap is not None:
            self._tap.receive(self._host, records)
        for listener in list(self.listeners):
            listener.receive(records)

    def lose(self, count: int) -> None:
        if count:
            for listener in list(self.listeners):
                listener.lose(count)


class _Stream:
    """The records of one host from one receiver.

    Attributes:
        stub: The receiver.
        connected: Set while records arrive.
        problem: Why no records arrive; empty while they do.
    """

    def __init__(
        self,
        host: str,
        stub: "mesh_pb2_grpc.MeshServiceAsyncStub",
        into: _HostStreams,
        since_s: float | None,
    ) -> None:
        self._since_s = since_s
        self.stub = stub
        self.connected = asyncio.Event()
        self.problem = _NOT_YET
        self._host = host
        self._into = into
        self._task: asyncio.Task[None] | None = None
        self._rate = _Rate()
        self._broke_s = 0.0
        # When the last message came, and of how much time records were on their way at the break.
        self._heard_s = 0.0
        self._unsent_s = 0.0

    def start(self, tasks: asyncio.TaskGroup) -> None:
        if self._task is None:
            self._task = tasks.create_task(self._read(), name=f"watch requests of {self._host}")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.connected.clear()
        self.problem = _NOT_YET

    def lost_for_good(self) -> int:
        """How many records a receiver that has gone probably never sent."""
        now_s = time.monotonic()
        if self.connected.is_set():
            # It went without a word, as with its machine.
            return self._rate.expected(min(now_s - self._heard_s, UNSENT_S + REROUTED_S))
        if not self._broke_s:
            return 0
        return self._rate.expected(self._unsent_s + min(now_s - self._broke_s, REROUTED_S))

    async def _read(self) -> None:
        wait_s = _FIRST_WAIT_S
        self._broke_s = time.monotonic()
        while True:
            ended = False
            try:
                await self._read_stream()
                reason, ended = "the controller ended the stream", True
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except Exception as error:  # noqa: BLE001 - it must not end the other rollouts
                reason = f"fault while records were counted: {error!r}"
                _log.exception("fault while records were counted", host=self._host)
            self.problem = f"no records of requests arrive: {reason}"
            if self.connected.is_set():
                self.connected.clear()
                wait_s, self._broke_s = _FIRST_WAIT_S, time.monotonic()
                # A receiver that ends a stream by itself has sent what it had.
                unsent_s = 0.0 if ended else min(self._broke_s - self._heard_s, UNSENT_S)
                self._unsent_s = unsent_s
            _log.warning("watches no requests", host=self._host, reason=reason, retry_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _read_stream(self) -> None:
        request = mesh_pb2.WatchRequestsRequest(host=self._host, include_mirrored=True)
        if self._since_s is not None:
            request.started_since.FromNanoseconds(int(self._since_s * 1e9))
        call = self.stub.WatchRequests(request)
        try:
            await call.initial_metadata()
            if call.done():
                # A call that has failed has metadata too, of no fields; this raises its error.
                await call.read()
            self._heard_s = time.monotonic()
            away_s = self._heard_s - self._broke_s
            self._into.lose(self._rate.expected(self._unsent_s + away_s))
            # What comes now is not asked for again after a break: it would count twice.
            self._since_s = None
            self.connected.set()
            self.problem = ""
            _log.info("watches requests", host=self._host)
            lost = 0
            async for message in call:
                self._into.lose(message.lost - lost)
                lost = message.lost
                self._heard_s = time.monotonic()
                self._rate.add(len(message.records), self._heard_s)
                self._into.receive(message.records)
        finally:
            call.cancel()


class _Rate:
    """The rate of records over the last half minute or so, to estimate what a break cost."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._count = 0
        self._per_s = 0.0

    def add(self, count: int, now_s: float) -> None:
        if not self._since_s:
            self._since_s = now_s
        self._count += count
        span_s = now_s - self._since_s
        if span_s >= 1.0:
            self._per_s = self._count / span_s
        if span_s >= _RATE_OVER_S:
            # Halve both, so that old records matter ever less.
            self._count //= 2
            self._since_s = now_s - span_s / 2

    def expected(self, span_s: float) -> int:
        return math.ceil(self._per_s * span_s)
