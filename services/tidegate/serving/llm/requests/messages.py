"""Reads the messages of a conversation into the form that chat templates take.

The form is that of OpenAI's API: ``{"role": "user", "content": "Hi"}``. Arguments of tool calls are
objects in it, not text, because templates write them as JSON.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from tidegate.chassis.errors import FieldViolation
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.requests.json_text import read_object

__all__ = ["ChatMessage", "client_texts", "read_messages"]

ChatMessage: TypeAlias = dict[str, Any]
"""A message for a chat template."""

_MAX_PARTS: Final = 256
_MAX_TOOL_CALLS: Final = 128

_ROLES: Final = {
    llm_pb2.ROLE_SYSTEM: "system",
    llm_pb2.ROLE_USER: "user",
    llm_pb2.ROLE_ASSISTANT: "assistant",
    llm_pb2.ROLE_TOOL: "tool",
    llm_pb2.ROLE_DEVELOPER: "developer",
}


def read_messages(
    messages: Iterable[llm_pb2.Message], at: str, violations: list[FieldViolation]
) -> list[ChatMessage]:
    """Reads the messages of a conversation and adds their errors to `violations`.

    Args:
        messages: The client's messages.
        at: Path of the messages in the request.
        violations: The list of errors.
    """
    read = [
        _read_message(each, f"{at}[{index}]", violations) for index, each in enumerate(messages)
    ]
    if not read:
        violations.append(FieldViolation(at, "must hold at least one message"))
    return read


def client_texts(message: ChatMessage) -> Iterable[tuple[str, str]]:
    """Returns the texts of a message that its client wrote, each with its path in the message."""
    content = message["content"]
    if isinstance(content, str):
        yield "content", content
    elif content is not None:
        for index, part in enumerate(content):
            yield f"parts[{index}].text", part["text"]
    if len(message) == len(("role", "content")):
        return
    for name in ("reasoning", "name", "tool_call_id"):
        if name in message:
            yield name, message[name]
    for index, call in enumerate(message.get("tool_calls", ())):
        yield f"tool_calls[{index}].id", call["id"]
        yield f"tool_calls[{index}].name", call["function"]["name"]
        for text in _texts(call["function"]["arguments"]):
            yield f"tool_calls[{index}].arguments", text


def _read_message(
    message: llm_pb2.Message, at: str, violations: list[FieldViolation]
) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        violations.append(
            FieldViolation(
                f"{at}.role", "must be ROLE_SYSTEM, _USER, _ASSISTANT, _TOOL or _DEVELOPER"
            )
        )
    read: ChatMessage = {"role": role or "user", "content": message.content}
    if message.parts:
        read["content"] = _read_parts(message, at, violations)
    if message.tool_calls or message.reasoning:
        _read_assistant_fields(message, role, read, at, violations)
    if message.tool_call_id:
        read["tool_call_id"] = message.tool_call_id
        if role is not None and role != "tool":
            violations.append(
                FieldViolation(f"{at}.tool_call_id", "is only for messages with ROLE_TOOL")
            )
    elif role == "tool":
        violations.append(
            FieldViolation(
                f"{at}.tool_call_id", "must be the id of the call that this message answers"
            )
        )
    if message.name:
        read["name"] = message.name
    return read


def _read_parts(
    message: llm_pb2.Message, at: str, violations: list[FieldViolation]
) -> list[dict[str, str]]:
    if message.content:
        violations.append(FieldViolation(f"{at}.parts", "excludes content; set one of them"))
    if len(message.parts) > _MAX_PARTS:
        violations.append(
            FieldViolation(
                f"{at}.parts", f"must hold at most {_MAX_PARTS}, not {len(message.parts)}"
            )
        )
    for index, part in enumerate(message.parts):
        if part.WhichOneof("content") is None:
            violations.append(FieldViolation(f"{at}.parts[{index}]", "set text"))
    return [{"type": "text", "text": part.text} for part in message.parts]


def _read_assistant_fields(
    message: llm_pb2.Message,
    role: str | None,
    read: ChatMessage,
    at: str,
    violations: list[FieldViolation],
) -> None:
    if role is not None and role != "assistant":
        violations.extend(
            FieldViolation(f"{at}.{name}", "is only for messages with ROLE_ASSISTANT")
            for name in ("tool_calls", "reasoning")
            if getattr(message, name)
        )
    if message.reasoning:
        read["reasoning"] = message.reasoning
    if not message.tool_calls:
        return
    if len(message.tool_calls) > _MAX_TOOL_CALLS:
        violations.append(
            FieldViolation(
                f"{at}.tool_calls",
                f"must hold at most {_MAX_TOOL_CALLS}, not {len(message.tool_calls)}",
            )
        )
    if read["content"] == "":
        # Templates ask whether there is content beside the calls.
        read["content"] = None
    read["tool_calls"] = [
        _read_tool_call(each, f"{at}.tool_calls[{index}]", violations)
        for index, each in enumerate(message.tool_calls)
    ]


def _read_tool_call(
    call: llm_pb2.ToolCall, at: str, violations: list[FieldViolation]
) -> dict[str, Any]:
    violations.extend(
        FieldViolation(f"{at}.{name}", "must not be empty")
        for name in ("id", "name")
        if not getattr(call, name)
    )
    arguments: dict[str, Any] = {}
    try:
        arguments = read_object(call.arguments)
    except ValueError as error:
        violations.append(FieldViolation(f"{at}.arguments", str(error)))
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _texts(value: Any) -> Iterable[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, each in value.items():
                yield key
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
