r"""The process that compiles constraints for `grammar_checker`: JSON lines in, JSON lines out.

    python -m tidegate.serving.llm.preprocessing.grammar_checker_process \
        TOKENIZER VOCABULARY_SIZE MEMORY_MIB

It compiles with llguidance, the library that the engine is told to use. It answers with an empty
text, or with what is wrong. Its memory is limited: a constraint that asks for too much ends this
process instead of the server.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any, Final

import llguidance

__all__ = ["main", "problem_of"]

_MAX_PROBLEM_CHARACTERS: Final = 400


def main(argv: list[str]) -> None:
    """Checks the constraints that arrive on standard input, until the input ends.

    Args:
        argv: Path of a ``tokenizer.json``, size of the vocabulary, memory limit in MiB.
    """
    path, vocabulary_size, memory_mib = Path(argv[0]), int(argv[1]), int(argv[2])
    if path.is_file():
        # The engine has more logits than the tokenizer has tokens.
        tokenizer = llguidance.LLTokenizer(path.read_text(encoding="utf-8"), vocabulary_size)
    else:
        tokenizer = llguidance.LLTokenizer("byte")
    _limit_memory(memory_mib)
    _answer("")
    for line in sys.stdin:
        request = json.loads(line)
        _answer(problem_of(request["kind"], request["texts"], tokenizer))


def problem_of(kind: str, texts: list[str], tokenizer: Any) -> str:
    """Compiles a constraint and takes its first decoding step.

    Args:
        kind: ``json_schema``, ``regex``, ``choice`` or ``grammar``.
        texts: The schema, the expression, the choices, or the grammar.
        tokenizer: llguidance's tokenizer of the model.

    Returns:
        The problem with the constraint; empty if there is none.
    """
    try:
        grammar = _grammar(kind, texts)
    except (ValueError, TypeError, KeyError) as error:
        return _shortened(f"is malformed: {error}")
    except RecursionError:
        return "is nested too deeply"
    if problem := llguidance.LLMatcher.validate_grammar(grammar, tokenizer):
        return _shortened(f"is not supported: {problem}")
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    allowed = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.stop_reason() == "NoExtensionBias" or (
        not matcher.is_accepting() and not _allows_more_than_end_of_text(allowed, tokenizer)
    ):
        return "can never be met: no answer matches it"
    if matcher.is_error():
        return _shortened(f"is too complex: {matcher.get_error()}")
    return ""


def _grammar(kind: str, texts: list[str]) -> str:
    match kind:
        case "json_schema":
            if not isinstance(json.loads(texts[0]), dict):
                raise TypeError("the schema must be a JSON object")
            return llguidance.LLMatcher.grammar_from_json_schema(
                texts[0], defaults={"whitespace_flexible": False}
            )
        case "regex" | "grammar":
            return llguidance.grammar_from(kind, texts[0])
        case _:
            return llguidance.grammar_from("choice", json.dumps(texts))


def _allows_more_than_end_of_text(allowed: bytes, tokenizer: Any) -> bool:
    """Returns whether a mask (a bit per token, lowest first) has more than end-of-text tokens."""
    mask = bytearray(allowed)
    for token_id in tokenizer.eos_tokens:
        if token_id // 8 < len(mask):
            mask[token_id // 8] &= ~(1 << token_id % 8) & 0xFF
    return any(mask)


def _limit_memory(memory_mib: int) -> None:
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit_bytes = used_bytes + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= _MAX_PROBLEM_CHARACTERS:
        return line
    return line[: _MAX_PROBLEM_CHARACTERS - 1] + "…"


def _answer(problem: str) -> None:
    sys.stdout.write(json.dumps(problem) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
