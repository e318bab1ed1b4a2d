"""Lets deadlines pass through Envoy, and counts the status codes that the callers get.

    python benchmarks/mesh/deadlines.py            # 1,000 calls through Envoy: about four minutes
    python benchmarks/mesh/deadlines.py --quick    # 100 calls

It runs the real ``tidegate up`` with a vision server and the language model in a temporary folder.
Callers use `tidegate.client`. Deadlines are spread over a range, so that the clocks of client,
Envoy and server run out in every order. Without a deadline the streams would run for long. A fifth
as many calls go directly to the servers.

Every caller must get ``DEADLINE_EXCEEDED``. There are two exceptions for short unary calls: the
answer may come before the deadline, or the server may refuse the call at once because its deadline
would pass in the queue (``DEADLINE_WOULD_PASS``). The benchmark prints a table, writes
``bench-results/deadlines.json``, and fails when any caller got another status.

It needs the models that ``make models`` builds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from local_mesh import ROOT, LocalMesh, VisionServer
from rich.console import Console
from rich.table import Table

from tidegate.client import AsyncClient, ClientOptions, Retry, TidegateRpcError, UnavailableError
from tidegate.serving.build.photographs import write_samples

sys.path.append(str(ROOT / "benchmarks"))
from reporting import Bound, cpu_name, print_bounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

ANSWERED: Final = "answered"
LATE: Final = "DEADLINE_EXCEEDED"
REFUSED: Final = "refused at once"
_WOULD_PASS: Final = "DEADLINE_WOULD_PASS"
_SEED: Final = 1
_DIRECT_SHARE: Final = 5
_QUICK: Final = 10
_CONNECTED_WITHIN_S: Final = 60

console = Console(width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of call.

    Attributes:
        name: The name in the table.
        server: ``vision`` or ``llm``.
        calls: Number of calls, of a thousand in all.
        concurrency: Calls in flight at the same time.
        deadlines_s: The shortest and the longest deadline.
        begin: Makes a call with a deadline and reads the whole response.
    """

    name: str
    server: str
    calls: int
    concurrency: int
    deadlines_s: tuple[float, float]
    begin: Callable[[AsyncClient, float], Awaitable[object]]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="bench-deadlines-") as folder:
        measuring = _measure(
            Path(folder), given.models.resolve(), quick=given.quick, with_llm=not given.without_llm
        )
        outcomes = asyncio.run(measuring)
    console.print(_table(outcomes))
    through = sum(
        (codes for (_, path), codes in outcomes.items() if path == "Envoy"), Counter[str]()
    )
    others = sum(codes.total() for codes in outcomes.values()) - sum(
        codes[LATE] + codes[ANSWERED] + codes[REFUSED] for codes in outcomes.values()
    )
    bounds = [
        Bound(f"{others} callers got another status than {LATE}; none may", others == 0),
        Bound(f"{through[LATE]} deadlines passed through Envoy", through[LATE] > 0),
    ]
    print_bounds(console, bounds)
    console.print(f"{cpu_name()}, seed {_SEED}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    document = {f"{name}, {path}": dict(codes) for (name, path), codes in outcomes.items()}
    given.output.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Written: {given.output}")
    return 0 if all(each.met for each in bounds) else 1


async def _measure(
    folder: Path, models: Path, *, quick: bool, with_llm: bool
) -> Mapping[tuple[str, str], Counter[str]]:
    kinds = [each for each in _kinds(folder) if with_llm or each.server != "llm"]
    local_mesh = LocalMesh(
        folder, models, {"vision-v1": VisionServer("v1", "1-int8")}, with_llm=with_llm
    )
    outcomes: dict[tuple[str, str], Counter[str]] = {}
    async with local_mesh.up():
        # The objects of the repository have two subsets; one of them has a server here.
        await local_mesh.tidegate("shift", "vision", "v1=100", "v2=0")
        addresses = {
            ("vision", "Envoy"): local_mesh.vision,
            ("vision", "direct"): str(local_mesh.server("vision-v1").grpc_address),
        }
        if with_llm:
            addresses["llm", "Envoy"] = local_mesh.llm
            addresses["llm", "direct"] = str(local_mesh.server("llm").grpc_address)
        # A retry would hide the status that the caller gets.
        options = ClientOptions(retry=Retry(attempts=1))
        for kind in kinds:
            for path, share in (("Envoy", 1), ("direct", _DIRECT_SHARE)):
                calls = max(1, kind.calls // share // (_QUICK if quick else 1))
                console.print(f"[dim]{kind.name}, {path}: {calls} calls[/dim]")
                async with AsyncClient(addresses[kind.server, path], options) as client:
                    await _connected(client, kind.server)
                    outcomes[kind.name, path] = await _outcomes_of(client, kind, calls)
    return outcomes


async def _connected(client: AsyncClient, server: str) -> None:
    """Waits for the connection; on a busy machine the first attempts may fail or time out."""
    models = client.vision.models if server == "vision" else client.llm.models
    async with asyncio.timeout(_CONNECTED_WITHIN_S):
        while True:
            with contextlib.suppress(UnavailableError):
                await models()
                return
            await asyncio.sleep(0.1)


async def _outcomes_of(client: AsyncClient, kind: Kind, calls: int) -> Counter[str]:
    """Makes the calls; returns how many ended with each status."""
    outcomes: Counter[str] = Counter()
    turns = asyncio.Semaphore(kind.concurrency)
    deadlines = random.Random(_SEED)

    async def one(within_s: float) -> None:
        async with turns:
            try:
                await kind.begin(client, within_s)
                outcomes[ANSWERED] += 1
            except TidegateRpcError as error:
                status = REFUSED if error.reason == _WOULD_PASS else error.code.name
                outcomes[status] += 1
                if status not in (LATE, REFUSED):
                    console.print(f"[red]{kind.name}: {error}[/red]")

    await asyncio.gather(*(one(deadlines.uniform(*kind.deadlines_s)) for _ in range(calls)))
    return outcomes


def _kinds(folder: Path) -> Sequence[Kind]:
    write_samples(folder)
    image = (folder / "cat.jpg").read_bytes()

    async def images() -> AsyncIterator[bytes]:
        while True:
            yield image
            await asyncio.sleep(0.005)

    async def classify_stream(client: AsyncClient, within_s: float) -> None:
        answers = client.vision.classify_stream(images(), timeout_s=within_s)
        async with contextlib.aclosing(answers):  # type: ignore[type-var]
            async for _ in answers:
                pass

    async def classify(client: AsyncClient, within_s: float) -> object:
        return await client.vision.classify([image] * 16, timeout_s=within_s)

    async def chat(client: AsyncClient, within_s: float) -> object:
        stream = client.llm.chat(
            "Count.", timeout_s=within_s, max_tokens=900, ignore_end_of_text=True
        )
        return await stream.read()

    async def generate(client: AsyncClient, within_s: float) -> object:
        stream = client.llm.generate(
            "One, two,", timeout_s=within_s, max_tokens=900, ignore_end_of_text=True
        )
        return await stream.read()

    async def complete(client: AsyncClient, within_s: float) -> object:
        return await client.llm.complete(
            "One, two,", timeout_s=within_s, max_tokens=900, ignore_end_of_text=True
        )

    streams_s, unary_s, tokens_s = (0.05, 0.5), (0.005, 0.1), (0.2, 1.2)
    return (
        Kind("ClassifyStream", "vision", 300, 4, streams_s, classify_stream),
        Kind("Classify, 16 images", "vision", 200, 4, unary_s, classify),
        Kind("Chat", "llm", 200, 4, tokens_s, chat),
        Kind("Generate", "llm", 200, 4, tokens_s, generate),
        Kind("Complete", "llm", 100, 4, tokens_s, complete),
    )


def _table(outcomes: Mapping[tuple[str, str], Counter[str]]) -> Table:
    codes = [LATE, ANSWERED, REFUSED]
    codes += sorted({code for each in outcomes.values() for code in each} - set(codes))
    drawn = Table(title="Status codes of calls whose deadline passed")
    drawn.add_column("call")
    drawn.add_column("path")
    for name in codes:
        drawn.add_column(name, justify="right")
    for (name, path), each in outcomes.items():
        drawn.add_row(name, path, *(str(each[code]) for code in codes))
    return drawn


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    parser.add_argument("--without-llm", action="store_true", help="only the vision server")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "deadlines.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
