"""Tries constraints out before the engine sees them, in a process that may die of it.

A schema of one line can ask for gigabytes (``"minItems": 1000000000``) or minutes, and the library
that compiles it then aborts the process it runs in. So a child process compiles every new
constraint first, with limits on time and memory, for the tokenizer that the engine uses, and takes
the first step with it; the engine gets what passed. A child that dies or takes too long is
replaced, and the client learns that its constraint is too complex. Constraints that passed or
failed are remembered.
"""

import asyncio
import json
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from tidegate.chassis.errors import InvalidArgument
from tidegate.serving.llm.sampling import Constraint

__all__ = ["GrammarGate", "grammar_gate"]

_log = structlog.stdlib.get_logger(__name__)

_REMEMBERED: Final = 512
# Starting the child (Python, the tokenizer) is not the constraint's fault.
_START_LIMIT_S: Final = 60.0


@dataclass(slots=True)
class GrammarGate:
    """The child process and what it has said. Make one with `grammar_gate`.

    Attributes:
        tokenizer: The model's ``tokenizer.json``; where it has none, bytes stand for tokens.
        vocabulary_size: Of the model.
        limit_s: How long compiling a constraint may take.
        memory_mib: How much memory compiling may take.
    """

    tokenizer: Path
    vocabulary_size: int
    limit_s: float
    memory_mib: int
    _child: asyncio.subprocess.Process | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _verdicts: OrderedDict[Constraint, str] = field(default_factory=OrderedDict)

    async def check(self, constraint: Constraint, at: str) -> None:
        """Returns when the engine may have the constraint.

        Args:
            constraint: To try out.
            at: Path in the request of what holds it.

        Raises:
            InvalidArgument: It is malformed, unsupported, can never be met, or is too complex.
        """
        problem = self._verdicts.get(constraint)
        if problem is None:
            async with self._turn:
                problem = self._verdicts.get(constraint)
                if problem is None:
                    problem = await self._ask(constraint)
        if problem:
            raise InvalidArgument.of(f"{at}.{constraint.kind}", problem, reason="BAD_CONSTRAINT")

    def _remember(self, constraint: Constraint, problem: str) -> None:
        self._verdicts[constraint] = problem
        if len(self._verdicts) > _REMEMBERED:
            self._verdicts.popitem(last=False)

    async def start(self) -> asyncio.subprocess.Process:
        """Starts the child, unless it runs, and waits until it can be asked."""
        if self._child is not None and self._child.returncode is None:
            return self._child
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidegate.serving.llm.grammar_child",
            str(self.tokenizer),
            str(self.vocabulary_size),
            str(self.memory_mib),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # What the library prints when it aborts tells an operator nothing.
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._child = child
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                await _line(child)
        except BaseException:
            await self.stop()
            raise
        return child

    async def stop(self) -> None:
        """Ends the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            if child.returncode is None:
                child.kill()
            await child.wait()

    async def _ask(self, constraint: Constraint) -> str:
        child = await self.start()
        question = {"kind": constraint.kind, "texts": constraint.texts}
        try:
            async with asyncio.timeout(self.limit_s):
                assert child.stdin is not None  # noqa: S101 - a pipe was asked for
                child.stdin.write(json.dumps(question).encode() + b"\n")
                await child.stdin.drain()
                verdict = str(json.loads(await _line(child)))
                self._remember(constraint, verdict)
                return verdict
        except TimeoutError:
            # Not remembered: perhaps the machine was busy.
            problem = f"is too complex to compile in {self.limit_s:g} s"
        except (ConnectionError, EOFError):
            problem = f"is too complex to compile in {self.memory_mib} MiB"
            self._remember(constraint, problem)
        except asyncio.CancelledError:
            # The answer to come would be taken for that to the next question.
            await self.stop()
            raise
        _log.warning("constraint too complex", kind=constraint.kind, problem=problem)
        await self.stop()
        return problem


@asynccontextmanager
async def grammar_gate(
    tokenizer: Path, vocabulary_size: int, limit_s: float, memory_mib: int
) -> AsyncIterator[GrammarGate]:
    """Opens a `GrammarGate`; leaving the context ends its child."""
    gate = GrammarGate(tokenizer, vocabulary_size, limit_s, memory_mib)
    await gate.start()
    try:
        yield gate
    finally:
        await gate.stop()


async def _line(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    line = await child.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the child has ended")
    return line
