"""Constraints are compiled in a separate process, where they can do no harm."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llguidance", reason="needs vLLM's grammar library: install the extra llm")

from tidegate.chassis.errors import InvalidArgument
from tidegate.serving.llm.engine.environment import intel_openmp
from tidegate.serving.llm.preprocessing.grammar_checker import running_grammar_checker
from tidegate.serving.llm.requests.sampling import Constraint, ConstraintKind

JSON_SCHEMA, REGEX, CHOICE, GRAMMAR = ConstraintKind

BESIDE_OPENMP = """
import asyncio
from pathlib import Path

import uvloop

from tidegate.serving.llm.preprocessing.grammar_checker import running_grammar_checker
from tidegate.serving.llm.requests.sampling import Constraint, ConstraintKind


def compute():
    import torch

    torch.set_num_threads(2)
    torch.relu(torch.rand(5_000_000))


async def main():
    await asyncio.to_thread(compute)
    tokenizer = Path("tokenizer.json")
    async with running_grammar_checker(tokenizer, 256, limit_s=20, memory_mib=512) as checker:
        await checker.check(Constraint(ConstraintKind.REGEX, ("a+",)), "constraint")


uvloop.run(main())
print("passed")
"""


@pytest.fixture
async def checker():
    # The file does not exist, so bytes count as tokens; that is enough to compile.
    async with running_grammar_checker(
        Path("tokenizer.json"), 256, limit_s=20, memory_mib=512
    ) as checker:
        yield checker


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (JSON_SCHEMA, ('{"type": "object", "properties": {"a": {"type": "integer"}}}',)),
        (JSON_SCHEMA, ("{}",)),
        (REGEX, ("[0-9]{3}-[a-z]+",)),
        (REGEX, ("(a|b)*",)),
        (REGEX, ("é🙂+",)),
        (CHOICE, ("yes", "no")),
        (GRAMMAR, ('start: "[" any "]"\nany: %json {"type": "object"}\n',)),
        (CHOICE, ('quote " backslash \\ line\nend', "🙂")),
    ],
)
async def test_valid_constraints_pass(checker, kind, texts):
    await checker.check(Constraint(kind, texts), "constraint")


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (REGEX, "(", "unclosed"),
        (REGEX, "(?=a)b", "look-around"),
        (REGEX, r"(a)\1", "backreference"),
        (REGEX, r"[^\s\S]", "never"),
        (JSON_SCHEMA, "{", "malformed"),
        (JSON_SCHEMA, "5", "object"),
        (JSON_SCHEMA, "true", "object"),
        (JSON_SCHEMA, '{"type": "banana"}', "banana"),
        (JSON_SCHEMA, '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        (JSON_SCHEMA, '{"$ref": "#"}', "never"),
        (JSON_SCHEMA, '{"$ref": "http://localhost/x.json"}', "not supported"),
        (JSON_SCHEMA, '{"type": "integer", "minimum": 5, "maximum": 3}', "greater"),
        (JSON_SCHEMA, '{"type":"array","items":' * 3000 + "{}" + "}" * 3000, "nested"),
    ],
)
async def test_invalid_constraints_are_refused_with_the_reason(checker, kind, text, says):
    with pytest.raises(InvalidArgument) as caught:
        await checker.check(Constraint(kind, (text,)), "constraint")
    (violation,) = caught.value.violations
    assert violation.field == "constraint"
    assert says in violation.description


async def test_a_constraint_that_kills_its_compiler_is_refused_and_the_next_one_passes(checker):
    schema = {"type": "array", "minItems": 1_000_000_000, "items": {"type": "integer"}}
    bomb = Constraint(JSON_SCHEMA, (json.dumps(schema),))
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="too complex"):
            await checker.check(bomb, "constraint")
    await checker.check(Constraint(REGEX, ("a",)), "constraint")


def test_constraints_are_checked_beside_intels_openmp():
    # PyTorch takes a lock of OpenMP after each fork that uvloop makes. If OpenMP has started in
    # another thread, the forked process never gets the lock.
    library = intel_openmp()
    assert library is not None, "vLLM for x86 CPUs brings it along"
    environment = os.environ | {"LD_PRELOAD": str(library)}
    ran = subprocess.run(
        [sys.executable, "-c", BESIDE_OPENMP],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "passed\n", ran.stderr


async def test_a_constraint_that_takes_too_long_is_refused_and_the_next_one_passes():
    async with running_grammar_checker(
        Path("tokenizer.json"), 256, limit_s=0.02, memory_mib=512
    ) as checker:
        slow = Constraint(REGEX, ("((a{1000}){1000}){1000}(b{1000}c{1000}){1000}",))
        with pytest.raises(InvalidArgument, match="too complex"):
            await checker.check(slow, "constraint")
        checker.limit_s = 20
        await checker.check(Constraint(REGEX, ("a",)), "constraint")


async def test_a_cancelled_check_does_not_shift_the_results_of_others(checker):
    slow = Constraint(CHOICE, tuple(f"{'x' * 200}{number}" for number in range(256)))
    asking = asyncio.create_task(checker.check(slow, "constraint"))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(InvalidArgument, match="unclosed"):
        await checker.check(Constraint(REGEX, ("(",)), "constraint")
    await checker.check(Constraint(REGEX, ("a",)), "constraint")
