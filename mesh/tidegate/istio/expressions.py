r"""Regular expressions, checked and matched as Envoy does.

Envoy compiles them with RE2 and reads both expression and text as bytes (Latin-1): a letter with an
accent is two characters to it. One expression that it cannot compile makes it reject a whole
response, with every route in it. Istio's validation compiles them with Go's ``regexp``, which has
the same syntax but for ``\C``, and accepts at most 1024 bytes.
"""

import functools
import re
from typing import Any, Final

import re2

__all__ = ["LARGEST_PROGRAM", "full_match", "regex_problem"]

LARGEST_PROGRAM: Final = 32_768
"""The largest RE2 program that our Envoy accepts; the bootstrap sets it, as Istio's does."""

_LONGEST_BYTES: Final = 1024
_LITERAL = re.compile(r"\\Q.*?(?:\\E|\Z)", re.DOTALL)
_ANY_BYTE = re.compile(r"(?:[^\\]|\\[^C])*\\C")

_OPTIONS: Final = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False


def regex_problem(expression: str) -> str | None:
    """Returns why Envoy or Istio would reject an expression; None where both accept it."""
    if not expression:
        return "is empty"
    if len(expression.encode()) > _LONGEST_BYTES:
        return f"is longer than the {_LONGEST_BYTES} bytes that Istio accepts"
    try:
        program = _compiled(expression)
    except re2.error as error:
        return f"is not RE2: {_words(error)}"
    if program.programsize > LARGEST_PROGRAM:
        return (
            f"is too large: RE2 makes {program.programsize} instructions of it, and Envoy accepts "
            f"{LARGEST_PROGRAM}"
        )
    # Envoy accepts \C. A `\\C` and one inside `\Q…\E` is ordinary text.
    if _ANY_BYTE.match(_LITERAL.sub("", expression)):
        return r"has \C, which Istio's validation does not accept"
    return None


def full_match(expression: str, text: str) -> bool:
    """Returns whether an expression matches a whole text, as the conditions of routes require."""
    return _compiled(expression).fullmatch(text.encode()) is not None


@functools.lru_cache(maxsize=512)
def _compiled(expression: str) -> Any:
    return re2.compile(expression.encode(), _OPTIONS)


def _words(error: re2.error) -> str:
    (words,) = error.args
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)
