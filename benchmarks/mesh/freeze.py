"""Freezes one of two servers, and counts the calls that fail although the other server is idle.

    python benchmarks/mesh/freeze.py               # about three minutes
    python benchmarks/mesh/freeze.py --with-llm    # also keeps the language model busy

It runs the real ``tidegate up`` with two vision servers that serve one version. One server gets
SIGSTOP while two calls a second, each with a deadline of 1.5 s, go through Envoy. Later it gets
SIGCONT. The benchmark does this twice: with ``health_check_interval_s: 0``, where the controller
follows only the health stream, and with the defaults.

Then it shows that the controller does not take a busy server for a frozen one. Callers overload all
servers, and the benchmark checks each server ten times a second, as the controller does. It prints
how long the answers took, and fails if three in a row took longer than the controller waits. It
writes ``bench-results/freeze.json``.

It needs the models that ``make models`` builds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from local_mesh import ROOT, LocalMesh, VisionServer
from rich.console import Console
from rich.table import Table

from tidegate.client import AsyncClient, ClientOptions, Retry, TidegateRpcError
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tidegate.serving.build.photographs import write_samples

sys.path.append(str(ROOT / "benchmarks"))
from reporting import Bound, cpu_name, print_bounds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DEADLINE_S: Final = 1.5
_BETWEEN_CALLS_S: Final = 0.5
_BACK_WITHIN_S: Final = 60.0
_BUSY_S: Final = 20.0
_BUSY_CALLERS: Final = 32
_IMAGES: Final = 16
_CHECK_INTERVAL_S: Final = 0.1
_TIMEOUT_S: Final = 1.0
_FAILURES: Final = 3
_ANSWER_S: Final = 30.0

console = Console(width=None if sys.stdout.isatty() else 110)


@dataclass(slots=True)
class Freeze:
    """The effect of one freeze.

    Attributes:
        checks: The health checks that were on.
        lasted_s: How long the server was frozen.
        unhealthy_after_s: Time from SIGSTOP until the controller had the server as unhealthy; None
            if it never did.
        healthy_after_s: Time from SIGCONT until the server was healthy again; None if it was never
            unhealthy.
        calls: Calls that began while the server was frozen.
        failed: The part of these calls that failed.
    """

    checks: str
    lasted_s: float
    unhealthy_after_s: float | None = None
    healthy_after_s: float | None = None
    calls: int = 0
    failed: int = 0


@dataclass(slots=True)
class CheckTimes:
    """How long a busy server took to answer its health checks.

    Attributes:
        seconds: The time of each answer.
    """

    seconds: list[float] = field(default_factory=list)

    @property
    def longest_failure_run(self) -> int:
        """The most answers in a row that took longer than the controller waits."""
        longest = current = 0
        for each in self.seconds:
            current = current + 1 if each > _TIMEOUT_S else 0
            longest = max(longest, current)
        return longest


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    given = _arguments()
    models = given.models.resolve()
    freezes, check_times = asyncio.run(_measure(models, given.freeze_s, with_llm=given.with_llm))
    console.print(_freeze_table(freezes))
    console.print(_check_table(check_times))
    bounds = [
        Bound(
            f"{name}: {each.longest_failure_run} checks in a row over {_TIMEOUT_S:g} s;"
            f" {_FAILURES} make it unhealthy",
            each.longest_failure_run < _FAILURES,
        )
        for name, each in check_times.items()
    ]
    print_bounds(console, bounds)
    console.print(f"{cpu_name()}, {os.cpu_count()} cores")
    document = {
        "freezes": [asdict(each) for each in freezes],
        "busy": {name: each.seconds for name, each in check_times.items()},
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Written: {given.output}")
    return 0 if all(each.met for each in bounds) else 1


async def _measure(
    models: Path, freeze_s: float, *, with_llm: bool
) -> tuple[Sequence[Freeze], Mapping[str, CheckTimes]]:
    freezes: list[Freeze] = []
    check_times: Mapping[str, CheckTimes] = {}
    servers = {"vision-a": VisionServer("v1", "1-int8"), "vision-b": VisionServer("v1", "1-int8")}
    for checks, settings in (("stream alone", {"health_check_interval_s": 0}), ("default", {})):
        is_last = not settings
        with tempfile.TemporaryDirectory(prefix="bench-freeze-") as name:
            folder = Path(name)
            write_samples(folder)
            image = (folder / "cat.jpg").read_bytes()
            local_mesh = LocalMesh(
                folder, models, servers, with_llm=with_llm and is_last, settings=settings
            )
            async with local_mesh.up():
                await local_mesh.tidegate("shift", "vision", "v1=100", "v2=0")
                console.print(f"[dim]{checks}: frozen for {freeze_s:g} s[/dim]")
                freezes.append(await _freeze(local_mesh, image, Freeze(checks, freeze_s)))
                if is_last:
                    console.print(f"[dim]busy for {_BUSY_S:g} s[/dim]")
                    check_times = await _check_busy_servers(local_mesh, image, with_llm=with_llm)
    return freezes, check_times


async def _freeze(local_mesh: LocalMesh, image: bytes, freeze: Freeze) -> Freeze:
    address, pid = local_mesh.server("vision-a").grpc_address, local_mesh.pid("vision-a")
    async with (
        grpc.aio.insecure_channel(local_mesh.controller) as channel,
        AsyncClient(local_mesh.vision, ClientOptions(retry=Retry(attempts=1))) as client,
    ):
        mesh = mesh_pb2_grpc.MeshServiceStub(channel)

        async def seconds_until(state: int, within_s: float) -> float | None:
            """Returns the seconds until the controller has the server in a state."""
            began = time.monotonic()
            while time.monotonic() - began < within_s:
                status = await mesh.GetStatus(mesh_pb2.GetStatusRequest())
                if any(e.address == address and e.state == state for e in status.endpoints):
                    return time.monotonic() - began
                await asyncio.sleep(0.05)
            return None

        async def call() -> None:
            freeze.calls += 1
            try:
                await client.vision.classify(image, timeout_s=_DEADLINE_S)
            except TidegateRpcError:
                freeze.failed += 1

        await client.vision.classify(image, timeout_s=_ANSWER_S)
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.TaskGroup() as tasks:
                unhealthy = tasks.create_task(
                    seconds_until(mesh_pb2.ENDPOINT_STATE_UNHEALTHY, freeze.lasted_s)
                )
                for _ in range(int((freeze.lasted_s - _DEADLINE_S) / _BETWEEN_CALLS_S)):
                    tasks.create_task(call())
                    await asyncio.sleep(_BETWEEN_CALLS_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        freeze.unhealthy_after_s = unhealthy.result()
        if freeze.unhealthy_after_s is not None:
            healthy = mesh_pb2.ENDPOINT_STATE_HEALTHY
            freeze.healthy_after_s = await seconds_until(healthy, _BACK_WITHIN_S)
    return freeze


async def _check_busy_servers(
    local_mesh: LocalMesh, image: bytes, *, with_llm: bool
) -> Mapping[str, CheckTimes]:
    """Overloads every server and checks each."""
    names = ["vision-a", "vision-b", *(["llm"] if with_llm else [])]
    check_times = {name: CheckTimes() for name in names}
    async with contextlib.AsyncExitStack() as stack:
        vision = await stack.enter_async_context(AsyncClient(local_mesh.vision))
        llm = await stack.enter_async_context(AsyncClient(local_mesh.llm))

        async def classify() -> None:
            while True:
                with contextlib.suppress(TidegateRpcError):
                    await vision.vision.classify([image] * _IMAGES, timeout_s=_ANSWER_S)

        async def generate() -> None:
            while True:
                with contextlib.suppress(TidegateRpcError):
                    stream = llm.llm.generate(
                        "One, two,", timeout_s=_ANSWER_S, max_tokens=200, ignore_end_of_text=True
                    )
                    await stream.read()

        working = [asyncio.create_task(classify()) for _ in range(_BUSY_CALLERS)]
        if with_llm:
            working += [asyncio.create_task(generate()) for _ in range(_BUSY_CALLERS)]
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in names:
                    address = str(local_mesh.server(name).grpc_address)
                    tasks.create_task(_check(address, check_times[name]))
        finally:
            for each in working:
                each.cancel()
            await asyncio.gather(*working, return_exceptions=True)
    return check_times


async def _check(address: str, check_times: CheckTimes) -> None:
    ends = time.monotonic() + _BUSY_S
    async with grpc.aio.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while time.monotonic() < ends:
            began = time.monotonic()
            await check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
            check_times.seconds.append(time.monotonic() - began)
            await asyncio.sleep(_CHECK_INTERVAL_S)


def _freeze_table(freezes: Sequence[Freeze]) -> Table:
    table = Table(title="One of two servers frozen", title_justify="left")
    for title in ("health checks", "frozen", "unhealthy after", "healthy after", "calls failed"):
        table.add_column(title, justify="left" if title == "health checks" else "right")
    for each in freezes:
        table.add_row(
            *(
                each.checks,
                f"{each.lasted_s:g} s",
                _seconds(each.unhealthy_after_s),
                _seconds(each.healthy_after_s, "-"),
            ),
            f"{each.failed} of {each.calls}",
        )
    return table


def _check_table(check_times: Mapping[str, CheckTimes]) -> Table:
    table = Table(title="Health checks of busy servers", title_justify="left")
    for title in ("server", "checks", "median", "99 %", "longest", f"over {_TIMEOUT_S:g} s"):
        table.add_column(title, justify="left" if title == "server" else "right")
    for name, each in check_times.items():
        ordered = sorted(each.seconds)
        at = (len(ordered) // 2, len(ordered) * 99 // 100, -1)
        late = sum(seconds > _TIMEOUT_S for seconds in ordered)
        table.add_row(
            *(name, str(len(ordered)), *(f"{1000 * ordered[index]:.0f} ms" for index in at)),
            str(late),
        )
    return table


def _seconds(value: float | None, none: str = "never") -> str:
    return none if value is None else f"{value:.1f} s"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="model repository")
    parser.add_argument("--freeze-s", type=float, default=30.0, help="length of a freeze")
    parser.add_argument("--with-llm", action="store_true", help="also keep the language model busy")
    parser.add_argument(
        "--output", type=Path, default=Path("bench-results/freeze.json"), help="file to write"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
