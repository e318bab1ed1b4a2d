"""What every contender is asked, given a way to stream token counts for a prompt.

Three kinds of load, each for a time to the first token of its own:

- ``in turn``: one short question after another, on an idle engine;
- ``steady``: so many answers under way at any time, each begun when one before it has ended, of
  lengths that differ, so that they begin and end at any time, as those of a service do;
- ``at once``: so many begun in the same moment. The engine's first step then takes whatever has
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

__all__ = ["LOADS", "Load", "Measured", "Stream", "answer_commands"]

Stream: TypeAlias = Callable[[str, int], AsyncIterator[int]]
"""Streams the answer of so many tokens to a prompt: the number of new tokens of each piece."""

LOADS = ("in turn", "steady", "at once")
_TOPICS = ("rivers", "bridges", "winter", "bread", "maps", "violins", "tides", "glass")
_QUESTIONS = 12
# Lengths are spread evenly over half to one and a half of the mean (a Weyl sequence).
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Load:
    """A load.

    Attributes:
        kind: one of ``LOADS``.
        streams: answers under way at once.
        tokens: of an answer; the mean where they differ.
        seconds: length of a steady load's measurement; half as long goes before, to settle.
        salt: makes the prompts others than those of any load before, so that no cache has them.
    """

    kind: str
    streams: int
    tokens: int
    seconds: float
    salt: str


@dataclass(frozen=True, slots=True)
class Measured:
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
    """Runs a load for each line on standard input, a `Load` as JSON, and prints what it gave."""
    loop = asyncio.get_running_loop()
    run = {"in turn": _in_turn, "steady": _steady, "at once": _at_once}
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        load = Load(**json.loads(line))
        print(json.dumps(asdict(await run[load.kind](stream, load))), flush=True)


def _prompt(salt: str, number: int) -> str:
    return (
        f"{salt}-{number}. Write a long and careful text about {_TOPICS[number % len(_TOPICS)]}, "
        "with many details and examples, for readers who know nothing of it:"
    )


async def _in_turn(stream: Stream, load: Load) -> Measured:
    began_s = time.perf_counter()
    answers = [await _answer(stream, _prompt(load.salt, number), 2) for number in range(_QUESTIONS)]
    seconds = time.perf_counter() - began_s
    tokens = 2 * _QUESTIONS
    return Measured(seconds, tokens, tokens, [first_s for _, first_s in answers])


async def _at_once(stream: Stream, load: Load) -> Measured:
    began_s = time.perf_counter()
    answers = await asyncio.gather(
        *(
            _answer(stream, _prompt(load.salt, number), load.tokens)
            for number in range(load.streams)
        )
    )
    seconds = time.perf_counter() - began_s
    tokens = load.streams * load.tokens
    return Measured(seconds, tokens, tokens, [first_s for _, first_s in answers])


async def _steady(stream: Stream, load: Load) -> Measured:
    # All begin at once, so what is measured begins when the first of them have come and gone.
    from_s = time.perf_counter() + load.seconds / 2
    until_s = from_s + load.seconds
    counted, came, ttft_s = 0, 0, []
    numbers = itertools.count()

    def count(new: int) -> None:
        nonlocal counted, came
        came += new
        if from_s <= time.perf_counter() < until_s:
            counted += new

    async def answers() -> None:
        while time.perf_counter() < until_s:
            number = next(numbers)
            tokens = max(2, round(load.tokens * (0.5 + number * _GOLDEN % 1)))
            began_s, first_s = await _answer(stream, _prompt(load.salt, number), tokens, count)
            if from_s <= began_s < until_s:
                ttft_s.append(first_s)

    await asyncio.gather(*(answers() for _ in range(load.streams)))
    if not ttft_s:
        raise RuntimeError(f"no answer began within {load.seconds} s; ask for more --seconds")
    return Measured(load.seconds, counted, came, ttft_s)


async def _answer(
    stream: Stream, prompt: str, tokens: int, count: Callable[[int], None] | None = None
) -> tuple[float, float]:
    """When an answer was asked for, and seconds to its first token."""
    began_s, first_s, came = time.perf_counter(), None, 0
    async for new in stream(prompt, tokens):
        if first_s is None and new:
            first_s = time.perf_counter() - began_s
        came += new
        if count is not None:
            count(new)
    if first_s is None or came != tokens:
        raise RuntimeError(f"an answer had {came} tokens instead of {tokens}")
    return began_s, first_s
