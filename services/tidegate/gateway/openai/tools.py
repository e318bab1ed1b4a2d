"""Tools, and whether the model calls them, from OpenAI's form to that of ``llm.proto``.

Chat completions nest a function below its tool; responses have both in one object.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import Discriminator, Field, Tag

from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.openai.fields import RequestModel, described
from tidegate.gateway.openai.reading import json_text
from tidegate.llm.v1 import llm_pb2

__all__ = ["ChatTool", "ChatToolChoice", "Function", "fill_tool", "fill_tools", "named_tool"]

_MODES: Final = {
    "none": llm_pb2.ToolChoice.MODE_NONE,
    "auto": llm_pb2.ToolChoice.MODE_AUTO,
    "required": llm_pb2.ToolChoice.MODE_REQUIRED,
}


class Function(RequestModel):
    """A function that the model may call."""

    name: str = Field(description="Up to 64 letters, digits, _ and -.")
    description: str | None = Field(None, description="What it does, and when to call it.")
    parameters: dict[str, Any] | None = Field(
        None, description="The JSON Schema of its arguments; none if left out."
    )
    strict: bool | None = Field(
        None, description="Enforce the schema whenever the model calls the function."
    )


class ChatTool(RequestModel):
    """A tool of a chat completion."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "custom": "declare a function, with a text as its argument"
    }

    type: str = described("function", description="function.")
    function: Function | None = Field(None, description="The function.")


class FunctionName(RequestModel):
    """The name of a function."""

    name: str = Field(description="The function's name.")


class NamedTool(RequestModel):
    """The choice of one tool."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "allowed_tools": "send only these tools",
        "custom": "name a function",
    }

    type: str = described("function", description="function.")
    function: FunctionName | None = Field(None, description="The function that the model calls.")


def _kind_of_choice(value: Any) -> str | None:
    match value:
        case str():
            return "<mode>"
        case dict():
            return "<tool>"
        case _:
            return None


ChatToolChoice = Annotated[
    Annotated[str, Tag("<mode>")] | Annotated[NamedTool, Tag("<tool>")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="wrong_type",
        custom_error_message="must be none, auto, required or an object that names a function",
    ),
]


def fill_tools(
    tools: Sequence[ChatTool] | None,
    choice: str | NamedTool | None,
    parallel: bool | None,
    chat: llm_pb2.ChatRequest,
) -> None:
    """Fills in the tools of a chat completion.

    Raises:
        ApiError: A tool is no function, or there is a choice without tools.
    """
    for index, tool in enumerate(tools or ()):
        at = f"tools[{index}]"
        if tool.type != "function":
            raise _no_function(f"{at}.type", tool.type)
        if tool.function is None:
            raise _missing(f"{at}.function")
        fill_tool(tool.function, chat, f"{at}.function")
    name = None
    if isinstance(choice, NamedTool):
        if choice.type != "function":
            raise _no_function("tool_choice.type", choice.type)
        if choice.function is None:
            raise _missing("tool_choice.function")
        name = choice.function.name
    fill_choice(choice if isinstance(choice, str) else None, name, parallel, chat)


def fill_tool(function: Function, chat: llm_pb2.ChatRequest, at: str) -> None:
    """Adds a function.

    Args:
        function: The client's function.
        chat: The call's message.
        at: Path of the function in the request.
    """
    parameters = function.parameters
    chat.tools.add(
        name=function.name,
        description=function.description or "",
        parameters_json_schema=(
            "" if parameters is None else json_text(parameters, f"{at}.parameters")
        ),
        strict=bool(function.strict),
    )


def fill_choice(
    mode: str | None, name: str | None, parallel: bool | None, chat: llm_pb2.ChatRequest
) -> None:
    """Fills in whether the model calls tools.

    Args:
        mode: ``none``, ``auto`` or ``required``; None if the request has none.
        name: The one tool to call; None if the request has none.
        parallel: Whether the model may call several tools; None allows it.
        chat: The call's message, with its tools.

    Raises:
        ApiError: The mode is unknown, the tool is not among the tools, or there are no tools.
    """
    if not chat.tools:
        if name is not None or mode == "required":
            raise _invalid("tool_choice", "only with tools; add some, or leave it out")
        if mode is not None and mode not in _MODES:
            raise _no_mode(mode)
        return
    if name is not None:
        if all(tool.name != name for tool in chat.tools):
            raise _invalid("tool_choice", f"no tool has the name {shortened(name, 80)!r}")
        chat.tool_choice.tool = name
    elif mode is not None:
        if mode not in _MODES:
            raise _no_mode(mode)
        chat.tool_choice.mode = _MODES[mode]
    if parallel is False:
        chat.single_tool_call = True


def named_tool(chat: llm_pb2.ChatRequest) -> bool:
    """Tells whether the request names the tool to call; such answers end with ``stop``."""
    return chat.tool_choice.WhichOneof("choice") == "tool"


def _no_mode(mode: str) -> ApiError:
    return _invalid(
        "tool_choice", f"must be none, auto, required or a tool, not {shortened(mode, 80)!r}"
    )


def _no_function(at: str, kind: str) -> ApiError:
    return ApiError.invalid(
        at,
        f"{at}: must be function: the gateway runs no tools itself, not {shortened(kind, 80)!r}",
        code="unsupported_parameter",
    )


def _invalid(at: str, problem: str) -> ApiError:
    return ApiError.invalid(at, f"{at}: {problem}", code="invalid_value")


def _missing(at: str) -> ApiError:
    return ApiError.invalid(at, f"{at} is missing", code="missing_required_parameter")
