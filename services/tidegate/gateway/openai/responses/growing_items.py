"""The items of a response's output while they grow."""

from typing import Any

from tidegate.gateway.openai.calls import new_id
from tidegate.gateway.openai.encoding import encode, encode_line
from tidegate.gateway.openai.responses.reply import (
    call_item,
    message_item,
    output_text,
    reasoning_item,
)
from tidegate.llm.v1 import llm_pb2

__all__ = ["CallItem", "GrowingItem", "MessageItem", "ReasoningItem"]


class GrowingItem:
    """An item that grows by deltas.

    Args:
        output_index: Its index in the output.

    Attributes:
        id: Its id.
        text: What it has so far: a text, or the arguments of a call.
    """

    prefix = ""
    """How ids begin."""
    event = ""
    """The events of its deltas: this, with ``.delta`` and ``.done``."""
    has_content = True
    """Whether its text is a part of its content."""

    def __init__(self, output_index: int) -> None:
        self.output_index = output_index
        self.id = new_id(self.prefix)
        self.text = ""
        kind = f"response.{self.event}.delta"
        fields = encode({"type": kind, **self.place()})[:-1]
        self._start = b"event: %b\ndata: %b" % (kind.encode(), fields)

    def place(self) -> dict[str, Any]:
        """Returns the fields that tell where in the output it is."""
        place = {"item_id": self.id, "output_index": self.output_index}
        return place | {"content_index": 0} if self.has_content else place

    def delta(self, sequence: int, text: str) -> bytes:
        """Adds a text, and makes the frame of it."""
        self.text += text
        return b'%b,"sequence_number":%d,"delta":%b}\n\n' % (
            self._start,
            sequence,
            encode_line(text),
        )

    def done(self) -> tuple[str, dict[str, Any]]:
        """Returns the event of the complete text: its type and its fields."""
        return f"response.{self.event}.done", {**self.place(), "text": self.text}

    def part(self) -> dict[str, Any] | None:
        """Writes its content as far as it is; None if it has none."""
        raise NotImplementedError

    def written(self, status: str, *, is_new: bool = False) -> dict[str, Any]:
        """Writes the item; a new one has no content yet."""
        raise NotImplementedError


class MessageItem(GrowingItem):
    """A message."""

    prefix = "msg_"
    event = "output_text"

    def __init__(self, output_index: int) -> None:
        super().__init__(output_index)
        self.logprobs: list[dict[str, Any]] = []

    def delta(self, sequence: int, text: str, logprobs: Any = None) -> bytes:
        """Adds a text with its log probabilities, and makes the frame of it."""
        self.text += text
        if logprobs:
            self.logprobs += logprobs
        return b'%b,"sequence_number":%d,"delta":%b,"logprobs":%b}\n\n' % (
            self._start,
            sequence,
            encode_line(text),
            encode_line(logprobs) if logprobs else b"[]",
        )

    def done(self) -> tuple[str, dict[str, Any]]:
        """Returns the event of the complete text: its type and its fields."""
        kind, fields = super().done()
        return kind, {**fields, "logprobs": self.logprobs}

    def part(self) -> dict[str, Any]:
        """Writes its content as far as it is."""
        return output_text(self.text, self.logprobs)

    def written(self, status: str, *, is_new: bool = False) -> dict[str, Any]:
        """Writes the item; a new one has no content yet."""
        return message_item(self.id, [] if is_new else [self.part()], status)


class ReasoningItem(GrowingItem):
    """Reasoning."""

    prefix = "rs_"
    event = "reasoning_text"

    def part(self) -> dict[str, Any]:
        """Writes its content as far as it is."""
        return {"type": "reasoning_text", "text": self.text}

    def written(self, status: str, *, is_new: bool = False) -> dict[str, Any]:
        """Writes the item; a new one has no content yet."""
        return reasoning_item(self.id, "" if is_new else self.text, status)


class CallItem(GrowingItem):
    """A call of a function.

    Args:
        output_index: Its index in the output.
        first: The first part of the call, with its id and the function's name.
    """

    prefix = "fc_"
    event = "function_call_arguments"
    has_content = False

    def __init__(self, output_index: int, first: llm_pb2.ToolCallDelta) -> None:
        super().__init__(output_index)
        self.first = first

    def done(self) -> tuple[str, dict[str, Any]]:
        """Returns the event of the complete arguments: its type and its fields."""
        fields = {**self.place(), "name": self.first.name, "arguments": self.text}
        return f"response.{self.event}.done", fields

    def part(self) -> None:
        """Tells that a call has no content."""

    def written(self, status: str, *, is_new: bool = False) -> dict[str, Any]:
        """Writes the item; a new one has no arguments yet."""
        return call_item(self.id, self.first, "" if is_new else self.text, status)
