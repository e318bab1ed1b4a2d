"""Tries constraints out before the engine sees them, in a process that may die of it.

A schema of one line can ask for gigabytes (``"minItems": 1000000000``) or minutes, and the library
that compiles it then aborts the process it runs in. So a child process compiles every new
constraint first, with limits on time and memory, for the tokenizer that the engine uses, and takes
the first step with it; the engine gets what passed. A child that dies or takes too long is
replaced, and the client learns that its constraint is too complex. Constraints that passed or
failed are remembered.

The child is started by `subprocess` and asked in threads. The event loop starts processes too, but
uvloop runs Python's after-fork hooks in them; with Intel's OpenMP preloaded, as vLLM advises, that
of PyTorch waits for a lock for ever.
"""

import asyncio
import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from tidegate.chassis.errors import InvalidArgument
from tidegate.serving.llm.requests.sampling import Constraint

__all__ = ["GrammarChecker", "running_grammar_checker"]

_log = structlog.stdlib.get_logger(__name__)

_REMEMBERED: Final = 512
# Starting the child (Python, the tokenizer) is not the constraint's fault.
_START_LIMIT_S: Final = 60.0


@dataclass(slots=True)
class GrammarChecker:
    """The child process and what it has said. Make one with `running_grammar_checker`.

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
    _child: subprocess.Popen[bytes] | None = None
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

    async def start(self) -> subprocess.Popen[bytes]:
        """Starts the child, unless it runs, and waits until it can be asked."""
        if self._child is not None and self._child.poll() is None:
            return self._child
        await self.stop()
        command = [
            sys.executable,
            "-m",
            "tidegate.serving.llm.preprocessing.grammar_checker_process",
        ]
        command += [str(self.tokenizer), str(self.vocabulary_size), str(self.memory_mib)]
        self._child = subprocess.Popen(  # noqa: ASYNC220, S603 - quick; and the command is ours
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What the library prints when it aborts tells an operator nothing.
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                await asyncio.to_thread(_line, self._child)
        except BaseException:
            await self.stop()
            raise
        return self._child

    async def stop(self) -> None:
        """Ends the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            await asyncio.to_thread(_clear_away, child)

    async def _ask(self, constraint: Constraint) -> str:
        child = await self.start()
        question = json.dumps({"kind": constraint.kind, "texts": constraint.texts})
        try:
            async with asyncio.timeout(self.limit_s):
                verdict = await asyncio.to_thread(_verdict, child, question)
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
async def running_grammar_checker(
    tokenizer: Path, vocabulary_size: int, limit_s: float, memory_mib: int
) -> AsyncIterator[GrammarChecker]:
    """Opens a `GrammarChecker`; leaving the context ends its child."""
    checker = GrammarChecker(tokenizer, vocabulary_size, limit_s, memory_mib)
    await checker.start()
    try:
        yield checker
    finally:
        await checker.stop()


def _verdict(child: subprocess.Popen[bytes], question: str) -> str:
    assert child.stdin is not None  # noqa: S101 - a pipe was asked for
    child.stdin.write(question.encode() + b"\n")
    child.stdin.flush()
    return str(json.loads(_line(child)))


def _line(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the child has ended")
    return line


def _clear_away(child: subprocess.Popen[bytes]) -> None:
    """Waits for a child that was killed, and closes its pipes."""
    with suppress(BrokenPipeError), child:
        pass
