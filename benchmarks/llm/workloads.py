"""What every contender is asked, given a way to stream token counts for a prompt.

Three kinds of load, each for a time to the first token of its own:

- ``sequential``: one short question after another, on an idle engine;
- ``steady``: so many answers under way at any time, each begun when one before it has ended, of
  lengths that differ, so that they begin and end at any time, as those of a service do;
- ``burst``: so many begun in the same moment. The engine's first step then takes whatever has
  come, one of them or all, which makes more of a difference than any server.
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
"""Streams the answer of so many tokens to a prompt: the number of new tokens of each piece."""

WORKLOADS = ("sequential", "steady", "burst")
_TOPICS = ("rivers", "bridges", "winter", "bread", "maps", "violins", "tides", "glass")
_QUESTIONS = 12
# Lengths are spread evenly over half to one and a half of the mean (a Weyl sequence).
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Workload:
    """A load.

    Attributes:
        kind: one of ``WORKLOADS``.
        streams: answers under way at once.
        tokens: of an answer; the mean where they differ.
        seconds: how long a steady load is measured, or longer where the machine is so slow that too
            few answers begin meanwhile.
        salt: makes the prompts others than those of any load before, so that no cache has them.
    """

    kind: str
    streams: int
    tokens: int
    seconds: float
    salt: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a load gave.

    Attributes:
        seconds: how long tokens were counted.
        tokens: that came in this time.
        all_tokens: that came at all, before and after this time as well.
        ttft_s: seconds to the first token of each answer that began in this time.
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
        load = Workload(**json.loads(line))
        print(json.dumps(asdict(await run[load.kind](stream, load))), flush=True)


def _prompt(salt: str, number: int) -> str:
    return (
        f"{salt}-{number}. Write a long and careful text about {_TOPICS[number % len(_TOPICS)]}, "
        "with many details and examples, for readers who know nothing of it:"
    )


async def _sequential(stream: Stream, load: Workload) -> Measurement:
    began_s = time.perf_counter()
    answers = [await _answer(stream, _prompt(load.salt, number), 2) for number in range(_QUESTIONS)]
    seconds = time.perf_counter() - began_s
    tokens = 2 * _QUESTIONS
    return Measurement(seconds, tokens, tokens, answers)


async def _burst(stream: Stream, load: Workload) -> Measurement:
    began_s = time.perf_counter()
    answers = await asyncio.gather(
        *(
            _answer(stream, _prompt(load.salt, number), load.tokens)
            for number in range(load.streams)
        )
    )
    seconds = time.perf_counter() - began_s
    tokens = load.streams * load.tokens
    return Measurement(seconds, tokens, tokens, answers)


async def _steady(stream: Stream, load: Workload) -> Measurement:
    from_s: float | None = None
    until_s: float | None = None
    counted, came, settled, ttft_s = 0, 0, 0, []
    numbers = itertools.count()

    def settle(began_s: float, first_s: float) -> None:
        nonlocal from_s, settled
        del began_s, first_s
        settled += 1
        if settled == load.streams:
            from_s = time.perf_counter()

    def first(began_s: float, first_s: float) -> None:
        if from_s is not None and began_s >= from_s and until_s is None:
            ttft_s.append(first_s)

    def count(new: int) -> None:
        nonlocal counted, came, until_s
        came += new
        if from_s is None or until_s is not None:
            return
        counted += new
        now_s = time.perf_counter()
        if now_s >= from_s + load.seconds and len(ttft_s) >= load.streams / 2:
            until_s = now_s

    async def answers() -> None:
        while until_s is None:
            number = next(numbers)
            spread = number * _GOLDEN % 1
            # All begin at once. The first answers are as long as what is left of those that are
            # under way at some moment, and what is measured begins when each of them has.
            share, tell = (0.05, settle) if number < load.streams else (0.5, first)
            tokens = max(2, round(load.tokens * (share + spread)))
            await _answer(stream, _prompt(load.salt, number), tokens, tell, count)

    await asyncio.gather(*(answers() for _ in range(load.streams)))
    assert from_s is not None
    assert until_s is not None
    return Measurement(until_s - from_s, counted, came, ttft_s)


def _ignore(*told: float) -> None:
    del told


async def _answer(
    stream: Stream,
    prompt: str,
    tokens: int,
    first: Callable[[float, float], None] = _ignore,
    count: Callable[[int], None] = _ignore,
) -> float:
    """Seconds to an answer's first token.

    Args:
        stream: asks.
        prompt: to answer.
        tokens: how many the answer must have.
        first: is told when it was asked for, and these seconds, when the first token comes.
        count: is told of new tokens.

    Raises:
        RuntimeError: it had another number of tokens.
    """
    began_s, first_s, came = time.perf_counter(), None, 0
    async for new in stream(prompt, tokens):
        if first_s is None and new:
            first_s = time.perf_counter() - began_s
            first(began_s, first_s)
        came += new
        count(new)
    if first_s is None or came != tokens:
        raise RuntimeError(f"an answer had {came} tokens instead of {tokens}")
    return first_s
