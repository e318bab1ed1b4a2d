"""The messages of a conversation, from OpenAI's form to that of ``llm.proto``."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import Discriminator, Field, Tag

from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.openai.fields import (
    FAIL_FAST,
    RequestModel,
    described,
    ignored,
    whole_numbers,
)
from tidegate.llm.v1 import llm_pb2

__all__ = ["ROLES", "ChatMessage", "Content", "Part", "fill_message", "message_params", "part_text"]

ROLES: Final = {
    "system": llm_pb2.ROLE_SYSTEM,
    "developer": llm_pb2.ROLE_DEVELOPER,
    "user": llm_pb2.ROLE_USER,
    "assistant": llm_pb2.ROLE_ASSISTANT,
    "tool": llm_pb2.ROLE_TOOL,
}

TEXT_PARTS: Final = ("text", "refusal", "input_text", "output_text", "reasoning_text")
"""The types of parts that are texts: that of chat completions, and those of responses."""

_REFUSED_PARTS: Final = {
    "image_url": "the model reads text only, and the gateway fetches nothing; describe the image,"
    " or classify it with /v1/images:classify",
    "input_image": "the model reads text only, and the gateway fetches nothing; describe the image,"
    " or classify it with /v1/images:classify",
    "input_audio": "the model reads text only; send what is said as text",
    "video_url": "the model reads text only, and the gateway fetches nothing",
    "file": "the model reads text only, and the gateway stores no files; send the file's text",
    "input_file": "the model reads text only, and the gateway stores no files; send the file's"
    " text",
}


class Part(RequestModel):
    """A part of a message's content."""

    type: str = described(
        *TEXT_PARTS, description="text; refusal too, in messages of the assistant."
    )
    text: str | None = Field(None, description="The text.")
    refusal: str | None = Field(None, description="The text of a refusal.")
    # Read only to say why they are refused.
    image_url: Any = Field(None, description="Refused: the model reads text only.")
    file_id: Any = Field(None, description="Refused: the model reads text only.")
    file_data: Any = Field(None, description="Refused: the model reads text only.")
    file_url: Any = Field(None, description="Refused: the model reads text only.")
    filename: Any = Field(None, description="Refused: the model reads text only.")
    annotations: Any = ignored()
    logprobs: Any = ignored()
    input_audio: Any = Field(None, description="Refused: the model reads text only.")
    video_url: Any = Field(None, description="Refused: the model reads text only.")
    file: Any = Field(None, description="Refused: the model reads text only.")
    detail: Any = ignored()
    cache_control: Any = ignored()
    prompt_cache_breakpoint: Any = ignored()


class FunctionCall(RequestModel):
    """A call of a function, as the model made it."""

    name: str = Field(description="The function's name.")
    arguments: str = Field(description="The arguments: a JSON object as text.")
    provider_specific_fields: Any = ignored("What LiteLLM's client adds to an answer.")


class ToolCall(RequestModel):
    """A call of a tool, as the model made it."""

    id: str = Field(description="The id that the result's message repeats.")
    type: str = described("function", default="function", description="function.")
    function: FunctionCall = Field(description="The call.")
    index: int | None = ignored("The call's place in a stream.")
    provider_specific_fields: Any = ignored("What LiteLLM's client adds to an answer.")

    _index = whole_numbers("index")


def _kind_of_content(value: Any) -> str | None:
    match value:
        case str():
            return "<text>"
        case list():
            return "<parts>"
        case _:
            return None


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], FAIL_FAST, Tag("<parts>")],
    Discriminator(
        _kind_of_content,
        custom_error_type="wrong_type",
        custom_error_message="must be a text or a list of parts",
    ),
]


class ChatMessage(RequestModel):
    """A message of a conversation."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "audio": "the model neither reads nor speaks audio; send text",
        "function_call": "use tool_calls",
    }

    role: str = described(*ROLES, description="system, developer, user, assistant or tool.")
    content: Content | None = Field(
        None, description="A text, or parts of text. The assistant may call tools instead."
    )
    name: str | None = Field(None, description="The author's name, for templates that show it.")
    tool_calls: Annotated[list[ToolCall], FAIL_FAST] | None = Field(
        None, description="The tools that the assistant called."
    )
    tool_call_id: str | None = Field(
        None, description="The id of the call whose result this is; for the role tool."
    )
    reasoning: str | None = Field(None, description="What the assistant thought first.")
    reasoning_content: str | None = Field(None, description="Another name of `reasoning`.")
    refusal: str | None = Field(None, description="The text of the assistant's refusal.")
    annotations: Any = ignored()
    provider_specific_fields: Any = ignored("What LiteLLM's client adds to an answer.")


def fill_message(asked: ChatMessage, message: llm_pb2.Message, at: str) -> None:
    """Turns a message into that of the call.

    Args:
        asked: The client's message.
        message: The message to fill.
        at: Path of the client's message in the request.

    Raises:
        ApiError: Its fields do not fit its role, or it has a part that is not text.
    """
    role = ROLES.get(asked.role)
    if role is None:
        hint = "; use tool" if asked.role == "function" else ""
        raise _invalid(
            f"{at}.role",
            "must be system, developer, user, assistant or tool, not"
            f" {shortened(asked.role, 80)!r}{hint}",
        )
    message.role = role
    if isinstance(asked.content, str):
        message.content = asked.content
    elif asked.content:
        for index, part in enumerate(asked.content):
            message.parts.add(text=part_text(part, f"{at}.content[{index}]"))
    elif asked.refusal is not None:
        message.content = asked.refusal
    elif not asked.tool_calls:
        raise ApiError.invalid(
            f"{at}.content",
            f"{at}.content is missing: give a text or a list of parts",
            code="missing_required_parameter",
        )
    if asked.name:
        message.name = asked.name
    if role == llm_pb2.ROLE_ASSISTANT:
        _fill_assistant(asked, message, at)
    elif asked.tool_calls:
        raise _invalid(f"{at}.tool_calls", "only the assistant calls tools; leave it out")
    if asked.tool_call_id is not None:
        message.tool_call_id = asked.tool_call_id
    elif role == llm_pb2.ROLE_TOOL:
        raise ApiError.invalid(
            f"{at}.tool_call_id",
            f"{at}.tool_call_id is missing: give the id of the call whose result this is",
            code="missing_required_parameter",
        )


def part_text(part: Part, at: str) -> str:
    """Returns the text of a part.

    Args:
        part: The part.
        at: Its path in the request.

    Raises:
        ApiError: It is no text; the error says why others are refused.
    """
    text = part.refusal if part.type == "refusal" else part.text
    if part.type in TEXT_PARTS:
        if text is None:
            raise ApiError.invalid(
                f"{at}.text", f"{at}.text is missing", code="missing_required_parameter"
            )
        return text
    if reason := _REFUSED_PARTS.get(part.type):
        raise ApiError.invalid(
            at,
            f"{at}: parts of type {part.type} are not supported: {reason}",
            code="unsupported_parameter",
        )
    raise _invalid(f"{at}.type", f"must be text, not {shortened(part.type, 80)!r}")


def message_params(at: str, asked: ChatMessage, index: int, prefix: str) -> dict[str, str]:
    """Returns the client's names of a message's fields by their paths in the call's message.

    Args:
        at: Path of the message in the client's request.
        asked: The client's message.
        index: Its index in the call's message.
        prefix: Path of the conversation in the call's message.
    """
    sent = f"{prefix}messages[{index}]"
    params = {sent: at}
    if isinstance(asked.content, list):
        params[f"{sent}.parts"] = f"{at}.content"
    for number in range(len(asked.tool_calls or ())):
        for name in ("name", "arguments"):
            params[f"{sent}.tool_calls[{number}].{name}"] = (
                f"{at}.tool_calls[{number}].function.{name}"
            )
    return params


def _fill_assistant(asked: ChatMessage, message: llm_pb2.Message, at: str) -> None:
    for index, call in enumerate(asked.tool_calls or ()):
        if call.type != "function":
            raise _invalid(
                f"{at}.tool_calls[{index}].type",
                f"must be function, not {shortened(call.type, 80)!r}",
            )
        message.tool_calls.add(
            id=call.id, name=call.function.name, arguments=call.function.arguments
        )
    if reasoning := asked.reasoning or asked.reasoning_content:
        message.reasoning = reasoning


def _invalid(at: str, problem: str) -> ApiError:
    return ApiError.invalid(at, f"{at}: {problem}", code="invalid_value")
