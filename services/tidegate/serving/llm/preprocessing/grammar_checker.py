"""Compiles constraints in a separate process before the engine gets them.

A schema of one line can need gigabytes (``"minItems": 1000000000``) or minutes to compile, and the
library then aborts its process. So a child process compiles every new constraint first, with limits
on time and memory and with the engine's tokenizer, and takes the first decoding step with it. Only
constraints that pass reach the engine. If the child dies or takes too long, the checker replaces
it, and the client gets an error: the constraint is too complex. The checker caches its results.

`subprocess` starts the child, and threads wait for its answers. The event loop could start
processes too, but uvloop runs Python's after-fork hooks in them. With Intel's OpenMP preloaded, as
vLLM advises, PyTorch's hook waits for a lock forever.
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

_MAX_CACHED: Final = 512
# The time to start the child (Python, the tokenizer) does not count for the constraint.
_START_LIMIT_S: Final = 60.0


@dataclass(slots=True)
class GrammarChecker:
    """The child process and the results so far. Make one with `running_grammar_checker`.

    Attributes:
        tokenizer: The model's ``tokenizer.json``; without this file, each byte counts as a token.
        vocabulary_size: Size of the model's vocabulary.
        limit_s: How long compiling a constraint may take.
        memory_mib: How much memory compiling a constraint may take.
    """

    tokenizer: Path
    vocabulary_size: int
    limit_s: float
    memory_mib: int
    _child: subprocess.Popen[bytes] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _results: OrderedDict[Constraint, str] = field(default_factory=OrderedDict)

    async def check(self, constraint: Constraint, at: str) -> None:
        """Returns when the constraint has passed the check.

        Args:
            constraint: The constraint to check.
            at: Path of the field with the constraint.

        Raises:
            InvalidArgument: It is malformed, unsupported, impossible to meet, or too complex.
        """
        problem = self._results.get(constraint)
        if problem is None:
            async with self._lock:
                problem = self._results.get(constraint)
                if problem is None:
                    problem = await self._compile(constraint)
        if problem:
            raise InvalidArgument.of(at, problem, reason="BAD_CONSTRAINT")

    def _cache(self, constraint: Constraint, problem: str) -> None:
        self._results[constraint] = problem
        if len(self._results) > _MAX_CACHED:
            self._results.popitem(last=False)

    async def start(self) -> subprocess.Popen[bytes]:
        """Starts the child unless it runs, and waits until it is ready."""
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
            # The output of the library when it aborts is of no use to an operator.
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                await asyncio.to_thread(_read_line, self._child)
        except BaseException:
            await self.stop()
            raise
        return self._child

    async def stop(self) -> None:
        """Ends the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            await asyncio.to_thread(_reap, child)

    async def _compile(self, constraint: Constraint) -> str:
        child = await self.start()
        request = json.dumps({"kind": constraint.kind, "texts": constraint.texts})
        try:
            async with asyncio.timeout(self.limit_s):
                result = await asyncio.to_thread(_read_result, child, request)
                self._cache(constraint, result)
                return result
        except TimeoutError:
            # Not cached: perhaps the machine was busy.
            problem = f"is too complex to compile in {self.limit_s:g} s"
        except (ConnectionError, EOFError):
            problem = f"is too complex to compile in {self.memory_mib} MiB"
            self._cache(constraint, problem)
        except asyncio.CancelledError:
            # Otherwise the next check would read the answer to this one.
            await self.stop()
            raise
        _log.warning("constraint too complex", kind=constraint.kind, problem=problem)
        await self.stop()
        return problem


@asynccontextmanager
async def running_grammar_checker(
    tokenizer: Path, vocabulary_size: int, limit_s: float, memory_mib: int
) -> AsyncIterator[GrammarChecker]:
    """Starts a `GrammarChecker`; leaving the context ends its child."""
    checker = GrammarChecker(tokenizer, vocabulary_size, limit_s, memory_mib)
    await checker.start()
    try:
        yield checker
    finally:
        await checker.stop()


def _read_result(child: subprocess.Popen[bytes], request: str) -> str:
    assert child.stdin is not None  # noqa: S101 - a pipe was asked for
    child.stdin.write(request.encode() + b"\n")
    child.stdin.flush()
    return str(json.loads(_read_line(child)))


def _read_line(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the process that compiles constraints has ended")
    return line


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Waits for a killed child, and closes its pipes."""
    with suppress(BrokenPipeError), child:
        pass
