"""The workloads of every system under test, given a function that streams token counts.

There are three kinds; each shows another time to first token:

- ``sequential``: one short request after another, on an idle engine;
- ``steady``: a closed loop with a fixed number of requests in flight. Each begins when one before
  it has ended. Lengths differ, so requests begin and end at any time, as those of a service do;
- ``burst``: a number of requests that begin at the same moment. The engine's first step then takes
  those that have arrived, one of them or all. That matters more than which server it is.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import TypeAlias

__all__ = ["WORKLOADS", "Measurement", "Stream", "Workload", "answer_commands"]

Stream: TypeAlias = Callable[[str, int], AsyncIterator[int]]
"""Takes a prompt and a number of tokens; yields the number of new tokens of each message."""

WORKLOADS = ("sequential", "steady", "burst")
_TOPICS = ("rivers", "bridges", "winter", "bread", "maps", "violins", "tides", "glass")
_SEQUENTIAL_REQUESTS = 12
# Spreads lengths evenly from half to one and a half of the mean (a Weyl sequence).
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests that a load generator makes.

    Attributes:
        kind: One of ``WORKLOADS``.
        streams: Requests in flight.
        tokens: Tokens of an answer; the mean where lengths differ.
        seconds: How long a steady workload is measured; longer on a machine so slow that too few
            requests begin in this time.
        salt: Makes the prompts differ from those of all workloads before, so that no cache holds
            them.
    """

    kind: str
    streams: int
    tokens: int
    seconds: float
    salt: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of a workload.

    Attributes:
        seconds: How long tokens were counted.
        tokens: Tokens that came in this time.
        all_tokens: All tokens, with those before and after this time.
        ttft_s: Time to first token of each request that began in this time, in seconds.
    """

    seconds: float
    tokens: int
    all_tokens: int
    ttft_s: list[float]


async def answer_commands(stream: Stream) -> None:
    """Runs each `Workload` that arrives on standard input as JSON, and prints its result."""
    loop = asyncio.get_running_loop()
    run = {"sequential": _sequential, "steady": _steady, "burst": _burst}
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        workload = Workload(**json.loads(line))
        print(json.dumps(asdict(await run[workload.kind](stream, workload))), flush=True)


def _prompt(salt: str, number: int) -> str:
    return (
        f"{salt}-{number}. Write a long and careful text about {_TOPICS[number % len(_TOPICS)]}, "
        "with many details and examples, for readers who know nothing of it:"
    )


async def _sequential(stream: Stream, workload: Workload) -> Measurement:
    began_s = time.perf_counter()
    ttft_s = [
        await _request(stream, _prompt(workload.salt, number), 2)
        for number in range(_SEQUENTIAL_REQUESTS)
    ]
    seconds = time.perf_counter() - began_s
    tokens = 2 * _SEQUENTIAL_REQUESTS
    return Measurement(seconds, tokens, tokens, ttft_s)


async def _burst(stream: Stream, workload: Workload) -> Measurement:
    began_s = time.perf_counter()
    ttft_s = await asyncio.gather(
        *(
            _request(stream, _prompt(workload.salt, number), workload.tokens)
            for number in range(workload.streams)
        )
    )
    seconds = time.perf_counter() - began_s
    tokens = workload.streams * workload.tokens
    return Measurement(seconds, tokens, tokens, ttft_s)


async def _steady(stream: Stream, workload: Workload) -> Measurement:
    from_s: float | None = None
    until_s: float | None = None
    counted, received, settled, ttft_s = 0, 0, 0, []
    numbers = itertools.count()

    def settle(began_s: float, first_s: float) -> None:
        nonlocal from_s, settled
        del began_s, first_s
        settled += 1
        if settled == workload.streams:
            from_s = time.perf_counter()

    def first(began_s: float, first_s: float) -> None:
        if from_s is not None and began_s >= from_s and until_s is None:
            ttft_s.append(first_s)

    def count(new: int) -> None:
        nonlocal counted, received, until_s
        received += new
        if from_s is None or until_s is not None:
            return
        counted += new
        now_s = time.perf_counter()
        if now_s >= from_s + workload.seconds and len(ttft_s) >= workload.streams / 2:
            until_s = now_s

    async def make_requests() -> None:
        while until_s is None:
            number = next(numbers)
            spread = number * _GOLDEN % 1
            # All streams begin at once. Their first answers are as long as the rest of an answer
            # that is cut at a random moment. The measurement begins when each stream has a token.
            share, on_first = (0.05, settle) if number < workload.streams else (0.5, first)
            tokens = max(2, round(workload.tokens * (share + spread)))
            await _request(stream, _prompt(workload.salt, number), tokens, on_first, count)

    await asyncio.gather(*(make_requests() for _ in range(workload.streams)))
    assert from_s is not None
    assert until_s is not None
    return Measurement(until_s - from_s, counted, received, ttft_s)


def _ignore(*values: float) -> None:
    del values


async def _request(
    stream: Stream,
    prompt: str,
    tokens: int,
    on_first: Callable[[float, float], None] = _ignore,
    on_tokens: Callable[[int], None] = _ignore,
) -> float:
    """Makes one request; returns its time to first token, in seconds.

    Args:
        stream: Makes the request.
        prompt: The prompt.
        tokens: Number of tokens that the answer must have.
        on_first: Called at the first token, with the time of the request and the time to first
            token.
        on_tokens: Called with the number of new tokens.

    Raises:
        RuntimeError: The answer had another number of tokens.
    """
    began_s, first_s, received = time.perf_counter(), None, 0
    async for new in stream(prompt, tokens):
        if first_s is None and new:
            first_s = time.perf_counter() - began_s
            on_first(began_s, first_s)
        received += new
        on_tokens(new)
    if first_s is None or received != tokens:
        raise RuntimeError(f"an answer had {received} tokens instead of {tokens}")
    return first_s
