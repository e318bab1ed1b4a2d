"""Watches the health of endpoints: what they report, and whether they answer.

A gRPC endpoint reports changes of its state on a stream (Watch of ``grpc.health.v1``), so the
controller hears at once of a change and of a lost connection. But the connection of a frozen
process stays open and silent. So the controller also calls each endpoint periodically (Check) on
the same connection. An endpoint is unhealthy after some calls in a row without an answer, as with a
readiness probe of Kubernetes. Any answer counts, an error too: it shows that the server runs.

The controller gets the readiness path of an HTTP endpoint periodically, and connects to an endpoint
of another protocol by TCP.

Every check costs a task and a connection, so a limit holds for checked endpoints. The controller
assumes that the others serve, and leaves it to the proxies (outlier detection) to find those that
fail.
"""

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidegate.mesh.control.endpoints.health_checks import (
    CheckKind,
    HealthCheck,
    HealthCheckTiming,
)

__all__ = ["HealthWatch", "ObservedHealth"]

_Response: Final = health_pb2.HealthCheckResponse
_REQUEST: Final = health_pb2.HealthCheckRequest()
_PERIODIC: Final = (CheckKind.TCP, CheckKind.HTTP)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 2.0
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An endpoint whose machine is gone never closes its connection.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Two endpoints at one address at different times must not share a connection's wait.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class ObservedHealth:
    """The health of an endpoint, as far as the controller knows.

    Attributes:
        serving: Whether it takes requests.
        reason: Why it does not take requests, or is assumed to; empty if it says so itself.
        checked: Whether the controller checks it.
    """

    serving: bool
    reason: str = ""
    checked: bool = True


_NOT_ASKED: Final = ObservedHealth(serving=False, reason="it has not answered yet")
_NOT_CHECKED: Final = ObservedHealth(
    serving=True, reason="not checked: it is outside of the mesh, or found by DNS", checked=False
)
_NO_INTERVAL: Final = ObservedHealth(
    serving=True, reason="not checked: health_check_interval_s is 0", checked=False
)
_BEYOND: Final = ObservedHealth(
    serving=True, reason="not checked: it is beyond the limit health_watches", checked=False
)
_NO_HEALTH: Final = ObservedHealth(
    serving=True,
    reason="assumed to serve while it answers: it has no service grpc.health.v1.Health",
)


class HealthWatch:
    """The checks of all endpoints. A context that ends them.

    Args:
        limit: How many endpoints are checked at once; 0 checks none.
        on_change: Called on the event loop with each address whose state has changed.
        timing: How often endpoints are checked.
    """

    def __init__(
        self, limit: int, on_change: Callable[[str], None], timing: HealthCheckTiming | None = None
    ) -> None:
        self._limit = limit
        self._on_change = on_change
        self._timing = timing or HealthCheckTiming()
        self._seen: dict[str, ObservedHealth] = {}
        self._checks: dict[str, HealthCheck] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unanswered: set[str] = set()
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.watch({})
        await asyncio.sleep(0)

    @property
    def seen(self) -> dict[str, ObservedHealth]:
        """The health of each endpoint, by address; changed in place."""
        return self._seen

    def watch(self, checks: Mapping[str, HealthCheck]) -> None:
        """Checks these endpoints and no others.

        An endpoint that gets another check keeps its state until the new check has a result.

        Args:
            checks: The check of each endpoint, by ``address:port``.
        """
        for address in self._seen.keys() - checks.keys():
            del self._seen[address]
            del self._checks[address]
            self._stop(address)
        for address, check in checks.items():
            if self._checks.get(address) != check:
                self._stop(address)
        for address, check in checks.items():
            if self._checks.get(address) != check or self._seen[address] is _BEYOND:
                self._checks[address] = check
                self._begin(address, check)

    async def answered(self, deadline_s: float) -> None:
        """Waits until every endpoint that is checked has answered once, or the deadline passes."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._all_answered.wait()
        except TimeoutError:
            return

    def _begin(self, address: str, check: HealthCheck) -> None:
        if check.kind is CheckKind.NONE:
            self._seen[address] = _NOT_CHECKED
        elif check.kind in _PERIODIC and not self._timing.interval_s:
            self._seen[address] = _NO_INTERVAL
        elif len(self._tasks) >= self._limit:
            self._seen[address] = _BEYOND
        else:
            before = self._seen.get(address, _NOT_ASKED)
            self._seen[address] = ObservedHealth(before.serving, _NOT_ASKED.reason)
            self._unanswered.add(address)
            self._all_answered.clear()

            def report(seen: ObservedHealth) -> None:
                self._take(address, seen)

            following = (
                # An endpoint that gets requests already must lose them if no server runs there.
                _follow_grpc(address, self._timing, report, patient=not before.serving)
                if check.kind is CheckKind.GRPC
                else _follow_periodically(
                    address, check.path, self._timing, report, serving=before.serving
                )
            )
            self._tasks[address] = asyncio.create_task(following, name=f"health-{address}")

    def _stop(self, address: str) -> None:
        if task := self._tasks.pop(address, None):
            task.cancel()
        self._answered(address)

    def _take(self, address: str, seen: ObservedHealth) -> None:
        # A task that was cancelled may still finish its step.
        if self._tasks.get(address) is not asyncio.current_task():
            return
        before = self._seen[address]
        self._seen[address] = seen
        self._answered(address)
        if before != seen:
            self._on_change(address)

    def _answered(self, address: str) -> None:
        self._unanswered.discard(address)
        if not self._unanswered:
            self._all_answered.set()


_Report = Callable[[ObservedHealth], None]


async def _follow_grpc(
    address: str, timing: HealthCheckTiming, report: _Report, *, patient: bool
) -> None:
    """Reports the health of a gRPC endpoint, for ever."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        await _GrpcHealth(health_pb2_grpc.HealthStub(channel), timing, report).follow(
            patient=patient
        )


class _GrpcHealth:
    """The health that one gRPC endpoint reports, while it answers.

    Args:
        stub: Its health service.
        timing: How often it is called.
        report: Takes its health.
    """

    def __init__(
        self, stub: health_pb2_grpc.HealthStub, timing: HealthCheckTiming, report: _Report
    ) -> None:
        self._stub = stub
        self._timing = timing
        self._report = report
        self._said: ObservedHealth | None = None
        self._misses = 0
        self._changed = asyncio.Event()

    async def follow(self, *, patient: bool) -> None:
        """Reports the health, for ever.

        Args:
            patient: Whether to wait for a server that does not run yet before the first report.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(patient=patient))
            if self._timing.interval_s:
                tasks.create_task(self._call())
            while True:
                await self._changed.wait()
                self._changed.clear()
                if self._misses >= self._timing.failures:
                    self._report(_unanswered(self._timing, self._timing.failures))
                elif self._said is not None:
                    self._report(self._said)

    def _heard(self, said: ObservedHealth | None, *, answered: bool = True) -> None:
        """Takes what an endpoint said, or that it says nothing any more."""
        self._said = said
        if answered:
            self._misses = 0
        self._changed.set()

    async def _listen(self, *, patient: bool) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                async for response in self._stub.Watch(_REQUEST, wait_for_ready=patient):
                    wait_s = _FIRST_WAIT_S
                    self._heard(_seen(response))
                patient = True
                self._heard(ObservedHealth(serving=False, reason="it ended its health stream"))
            except grpc.aio.AioRpcError as error:
                # Without a stream only a call that does not wait notices a lost connection.
                patient = error.code() is not grpc.StatusCode.UNIMPLEMENTED
                if patient:
                    self._heard(ObservedHealth(serving=False, reason=_words(error)), answered=False)
                else:
                    await self._ask()
            # Varied, because all endpoints lose their connections when a machine stalls.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _ask(self) -> None:
        """Asks an endpoint that has no Watch; many have no health service at all."""
        try:
            self._heard(_seen(await self._stub.Check(_REQUEST, timeout=self._timing.timeout_s)))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._heard(_NO_HEALTH)
            elif error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                self._heard(ObservedHealth(serving=False, reason=_words(error)), answered=False)

    async def _call(self) -> None:
        """Counts the calls that an endpoint does not answer."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await self._stub.Check(_REQUEST, timeout=self._timing.timeout_s)
                self._answers()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._misses += 1
                    self._changed.set()
                elif error.code() is not grpc.StatusCode.UNAVAILABLE:
                    self._answers()
                # Without a connection there is no answer; the stream reports that.
            await _until_next(started, self._timing)

    def _answers(self) -> None:
        if self._misses:
            self._misses = 0
            self._changed.set()


async def _follow_periodically(
    address: str, path: str, timing: HealthCheckTiming, report: _Report, *, serving: bool
) -> None:
    """Reports whether an endpoint takes TCP connections, or says that it is ready, for ever.

    Args:
        address: The endpoint.
        path: The path to get over HTTP; empty only connects.
        timing: How often to connect.
        report: Takes its health.
        serving: Whether it gets requests already; it keeps them until it fails often enough.
    """
    misses, answered = 0, serving
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            async with asyncio.timeout(timing.timeout_s):
                reason = await _asked(address, path)
            # What it says of itself counts at once.
            misses = timing.failures if reason else 0
        except ConnectionRefusedError:
            # No server listens there, which is as certain as an answer.
            misses = timing.failures
            reason = "it refuses TCP connections"
        except TimeoutError:
            misses += 1
            reason = _unanswered(timing, misses).reason
        except OSError as error:
            misses += 1
            reason = f"it cannot be connected to by TCP: {error.strerror or error}"
        if not reason or misses >= timing.failures or not answered:
            answered = True
            report(ObservedHealth(serving=not reason, reason=reason))
        await _until_next(started, timing)


async def _asked(address: str, path: str) -> str:
    """Connects to an endpoint, and gets its readiness path if it has one.

    Returns:
        Why it takes no requests; empty if it does.

    Raises:
        OSError: It cannot be connected to, or ends the connection without an answer.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        if not path:
            return ""
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: tidegate-health\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        line = await reader.readline()
    except ValueError:
        # The first line is longer than any that HTTP has.
        return f"it does not answer {path} over HTTP"
    finally:
        writer.close()
    if not line:
        raise ConnectionResetError("it closed the connection")
    answer = _STATUS_LINE.match(line)
    if answer is None:
        return f"it does not answer {path} over HTTP"
    status = int(answer[1])
    return "" if 200 <= status < 400 else f"it answers {path} with {status}"


async def _until_next(started: float, timing: HealthCheckTiming) -> None:
    """Waits for the time of the next check.

    Args:
        started: When the last check began, by the clock of the event loop.
        timing: How often to check.
    """
    # Varied, so that the checks of all endpoints do not coincide.
    due = started + timing.interval_s * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))


def _seen(response: health_pb2.HealthCheckResponse) -> ObservedHealth:
    if response.status == _Response.SERVING:
        return ObservedHealth(serving=True)
    status = _Response.ServingStatus.Name(response.status)
    return ObservedHealth(serving=False, reason=f"it says {status}")


def _unanswered(timing: HealthCheckTiming, misses: int) -> ObservedHealth:
    checks = "a health check" if misses == 1 else f"{misses} health checks in a row"
    reason = f"it did not answer {checks} within {timing.timeout_s:g} s"
    return ObservedHealth(serving=False, reason=reason)


def _words(error: grpc.aio.AioRpcError) -> str:
    return f"its health stream broke: {error.code().name}: {error.details()}"
