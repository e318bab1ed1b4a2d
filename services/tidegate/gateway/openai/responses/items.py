"""The items of a response's input, and the messages of the conversation that they make.

A conversation has a message of the assistant where the input can have several items: reasoning, a
text and calls of functions. Items that follow each other make one message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import Discriminator, Field, Tag

from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.openai.fields import FAIL_FAST, RequestModel, described, ignored
from tidegate.gateway.openai.messages import ROLES, Content, Part, part_text
from tidegate.llm.v1 import llm_pb2

__all__ = ["Conversation", "InputItem", "ResponseInput"]

_ITEMS: Final = "message, function_call, function_call_output or reasoning"


class ReasoningPart(RequestModel):
    """A part of a reasoning item."""

    type: str = Field("reasoning_text", description="reasoning_text or summary_text.")
    text: str = Field(description="The text.")


class InputItem(RequestModel):
    """An item of the input."""

    type: str | None = described(
        *("message", "function_call", "function_call_output", "reasoning", None),
        default=None,
        description="message (default), function_call, function_call_output or reasoning.",
    )
    id: str | None = ignored()
    status: str | None = ignored()
    role: str | None = described(
        *(role for role in ROLES if role != "tool"),
        None,
        default=None,
        description="Of a message: the author.",
    )
    content: Content | None = Field(None, description="Of a message: a text, or parts of text.")
    phase: str | None = ignored()
    call_id: str | None = Field(None, description="Of a call and its output: the call's id.")
    name: str | None = Field(None, description="Of a call: the function's name.")
    arguments: str | None = Field(None, description="Of a call: a JSON object as text.")
    output: Content | None = Field(None, description="Of an output: a text, or parts of text.")
    summary: Annotated[list[ReasoningPart], FAIL_FAST] | None = Field(
        None, description="Of reasoning: a summary, used where there is no content."
    )
    encrypted_content: str | None = ignored("The gateway encrypts nothing.")


def _kind_of_input(value: Any) -> str | None:
    match value:
        case str():
            return "<text>"
        case list():
            return "<items>"
        case _:
            return None


ResponseInput = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[InputItem], FAIL_FAST, Tag("<items>")],
    Discriminator(
        _kind_of_input,
        custom_error_type="wrong_type",
        custom_error_message="must be a text or a list of items",
    ),
]


@dataclass(slots=True)
class Conversation:
    """The messages of a call, as they grow with the items of an input.

    Attributes:
        chat: The message of the call.
        characters: The size of the texts.
        params: The client's names of messages and of their fields by their paths in `chat`.
    """

    chat: llm_pb2.ChatRequest
    characters: int = 0
    params: dict[str, str] = field(default_factory=dict)
    _reasoning: str = ""

    def add_text(self, role: "llm_pb2.Role.ValueType", text: str, at: str) -> None:
        """Adds a message of one text."""
        self._add(role, at).content = text
        self.params[f"messages[{len(self.chat.messages) - 1}].content"] = at
        self.characters += len(text)

    def add_items(self, items: Sequence[InputItem]) -> None:
        """Adds the items of an input.

        Raises:
            ApiError: An item lacks a field, or is not supported.
        """
        for index, item in enumerate(items):
            at = f"input[{index}]"
            match item.type or "message":
                case "message":
                    self._add_message(item, at)
                case "function_call":
                    self._add_call(item, at)
                case "function_call_output":
                    self._add_output(item, at)
                case "reasoning":
                    self._reasoning += _reasoning_of(item)
                case "item_reference":
                    raise ApiError.invalid(
                        f"{at}.type",
                        f"{at}.type: item_reference is not supported: nothing is stored; send the"
                        " item",
                        code="unsupported_parameter",
                    )
                case other:
                    raise ApiError.invalid(
                        f"{at}.type",
                        f"{at}.type: must be {_ITEMS}, not {shortened(other, 80)!r}",
                        code="unsupported_parameter",
                    )

    def _add_message(self, item: InputItem, at: str) -> None:
        if item.role not in ROLES or item.role == "tool":
            raise ApiError.invalid(
                f"{at}.role",
                f"{at}.role: must be system, developer, user or assistant, not"
                f" {shortened(item.role or 'nothing', 80)!r}",
                code="invalid_value",
            )
        if item.content is None:
            raise _missing(f"{at}.content")
        self._fill(self._add(ROLES[item.role], at), item.content, f"{at}.content")

    def _add_call(self, item: InputItem, at: str) -> None:
        for name in ("call_id", "name", "arguments"):
            if getattr(item, name) is None:
                raise _missing(f"{at}.{name}")
        messages = self.chat.messages
        if self._reasoning or not messages or messages[-1].role != llm_pb2.ROLE_ASSISTANT:
            self._add(llm_pb2.ROLE_ASSISTANT, at)
        sent = f"messages[{len(messages) - 1}].tool_calls[{len(messages[-1].tool_calls)}]"
        self.params[sent] = at
        self.params[f"{sent}.id"] = f"{at}.call_id"
        messages[-1].tool_calls.add(id=item.call_id, name=item.name, arguments=item.arguments)
        self.characters += len(item.arguments or "")

    def _add_output(self, item: InputItem, at: str) -> None:
        if item.call_id is None:
            raise _missing(f"{at}.call_id")
        if item.output is None:
            raise _missing(f"{at}.output")
        message = self._add(llm_pb2.ROLE_TOOL, at)
        message.tool_call_id = item.call_id
        self._fill(message, item.output, f"{at}.output")

    def _add(self, role: "llm_pb2.Role.ValueType", at: str) -> llm_pb2.Message:
        self.params[f"messages[{len(self.chat.messages)}]"] = at
        message = self.chat.messages.add(role=role)
        if role == llm_pb2.ROLE_ASSISTANT:
            message.reasoning, self._reasoning = self._reasoning, ""
        return message

    def _fill(self, message: llm_pb2.Message, content: str | list[Part], at: str) -> None:
        sent = f"messages[{len(self.chat.messages) - 1}]"
        if isinstance(content, str):
            message.content = content
            self.characters += len(content)
            self.params[f"{sent}.content"] = at
            return
        self.params[f"{sent}.parts"] = at
        for index, part in enumerate(content):
            text = part_text(part, f"{at}[{index}]")
            message.parts.add(text=text)
            self.characters += len(text)


def _reasoning_of(item: InputItem) -> str:
    if isinstance(item.content, list):
        return "".join(part.text or "" for part in item.content)
    return item.content or "".join(part.text for part in item.summary or ())


def _missing(at: str) -> ApiError:
    return ApiError.invalid(at, f"{at} is missing", code="missing_required_parameter")
