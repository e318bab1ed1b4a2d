"""Reads the calls of an answer that a request demanded, while the answer is generated.

The constraint of `tidegate.serving.llm.requests.tools` fixes the form of such an answer, so reading
it needs no parser of the model. Each character is read once.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["CallPart", "CallReader", "NamedCallReader", "RequiredCallsReader", "new_call_id"]

_HEAD: Final = re.compile(r'\{"name":"([A-Za-z0-9_-]+)","parameters":')


@dataclass(frozen=True, slots=True)
class CallPart:
    """A new part of a call.

    Attributes:
        index: The call's number in the answer.
        id: The call's id; only in its first part.
        name: The tool's name; only in the first part.
        arguments: New text of the arguments.
    """

    index: int
    id: str
    name: str
    arguments: str


class CallReader(Protocol):
    """Reads the calls of one answer."""

    def read(self, text: str) -> list[CallPart]:
        """Returns the parts of calls in new text of the answer."""
        ...


class NamedCallReader:
    """Reads an answer that is the arguments of one tool.

    Args:
        name: The tool's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_begun = False

    def read(self, text: str) -> list[CallPart]:
        """Returns the new part of the call."""
        if not text:
            return []
        if self._has_begun:
            return [CallPart(0, "", "", text)]
        self._has_begun = True
        return [CallPart(0, new_call_id(), self._name, text)]


class RequiredCallsReader:
    """Reads an answer that is a list of calls."""

    def __init__(self) -> None:
        self._calls = 0
        self._pending = ""
        self._is_in_arguments = False
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def read(self, text: str) -> list[CallPart]:
        """Returns the parts of calls in new text of the answer."""
        parts: list[CallPart] = []
        first: tuple[str, str] = ("", "")
        text = self._pending + text
        self._pending = ""
        while text:
            if not self._is_in_arguments:
                head = _HEAD.search(text)
                if head is None:
                    # At most the end of one call and the beginning of the next.
                    self._pending = text
                    break
                first = (new_call_id(), head[1])
                self._calls += 1
                self._is_in_arguments = True
                text = text[head.end() :]
            end = self._end_of_arguments(text)
            if text[:end] or first[0]:
                parts.append(CallPart(self._calls - 1, *first, text[:end]))
            text, first = text[end:], ("", "")
        return parts

    def _end_of_arguments(self, text: str) -> int:
        """Returns how much of the text belongs to the arguments, which are an object."""
        for place, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = character == "\\"
                self._is_in_string = character != '"'
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._is_in_arguments = False
                    return place + 1
        return len(text)


def new_call_id() -> str:
    """Returns a random id for a call."""
    return f"call_{secrets.token_hex(12)}"
