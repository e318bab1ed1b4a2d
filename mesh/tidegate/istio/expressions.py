r"""Regular expressions, judged and matched as Envoy does it.

Envoy compiles them with RE2 and reads both expression and text as bytes (Latin-1): a letter with an
accent is two characters to it. One expression that it cannot compile makes it reject a whole
response, with every route in it. Istio's validation compiles them with Go's ``regexp``, which has
the same syntax but for ``\C``, and takes at most 1024 bytes.
"""

import functools
import re
from typing import Any, Final

import re2

__all__ = ["LARGEST_PROGRAM", "full_match", "regex_problem"]

LARGEST_PROGRAM: Final = 32_768
"""The greatest RE2 program that our Envoy takes; a bootstrap says so, as Istio's does."""

_LONGEST_BYTES: Final = 1024
_LITERAL = re.compile(r"\\Q.*?(?:\\E|\Z)", re.DOTALL)
_ANY_BYTE = re.compile(r"(?:[^\\]|\\[^C])*\\C")

_OPTIONS: Final = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False


def regex_problem(expression: str) -> str | None:
    """Why Envoy or Istio would not take an expression; None where both would."""
    if not expression:
        return "is empty"
    if len(expression.encode()) > _LONGEST_BYTES:
        return f"is longer than the {_LONGEST_BYTES} bytes that Istio takes"
    try:
        program = _compiled(expression)
    except re2.error as error:
        return f"is not RE2: {_words(error)}"
    if program.programsize > LARGEST_PROGRAM:
        return (
            f"is too large: RE2 makes {program.programsize} instructions of it, and Envoy takes "
            f"{LARGEST_PROGRAM}"
        )
    # Envoy takes it. `\\` and `\Q…\E` hide a `\C` that is none.
    if _ANY_BYTE.match(_LITERAL.sub("", expression)):
        return r"has \C, which Istio's validation does not take"
    return None


def full_match(expression: str, text: str) -> bool:
    """Whether an expression matches a whole text, as every condition of a route asks."""
    return _compiled(expression).fullmatch(text.encode()) is not None


@functools.lru_cache(maxsize=512)
def _compiled(expression: str) -> Any:
    return re2.compile(expression.encode(), _OPTIONS)


def _words(error: re2.error) -> str:
    (words,) = error.args
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)
