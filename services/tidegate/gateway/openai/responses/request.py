"""The request for a response, and the message of its call."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.openai.chat import fill_reasoning_effort
from tidegate.gateway.openai.fields import (
    FAIL_FAST,
    RequestModel,
    StreamOptions,
    described,
    ignored,
    only,
    whole_numbers,
)
from tidegate.gateway.openai.responses.items import Conversation, ResponseInput
from tidegate.gateway.openai.sampling import FORMATS, fill_format
from tidegate.gateway.openai.tools import Function, fill_choice, fill_tool
from tidegate.llm.v1 import llm_pb2

__all__ = ["ResponseRequest"]

_LOGPROBS = "message.output_text.logprobs"


class ResponseTool(Function):
    """A tool of a response."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "allowed_callers": "only the model calls functions; leave it out",
        "defer_loading": "send the tools that the model may call",
        "output_schema": "describe the output in the description",
    }

    type: str = described("function", description="function.")
    name: str = Field("", description="Up to 64 letters, digits, _ and -.")


class NamedFunction(RequestModel):
    """The choice of one function."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "mode": "send only the tools that are allowed",
        "tools": "name one function",
    }

    type: str = described("function", description="function.")
    name: str | None = Field(None, description="The function that the model calls.")


class TextFormat(RequestModel):
    """The form of the answer."""

    type: str = described(*FORMATS, default="text", description="text, json_object or json_schema.")
    name: str | None = Field(None, description="A name of the schema, for readers.")
    description: str | None = ignored("What the schema is for.")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="The schema.")
    strict: bool | None = ignored("The schema is enforced in every case.")


class TextOptions(RequestModel):
    """How the answer is written."""

    format: TextFormat | None = Field(None, description="The form of the answer.")
    verbosity: str | None = only("medium", description="Ask for length in the input.")


class ReasoningOptions(RequestModel):
    """How much the model thinks."""

    effort: str | None = Field(
        None, description="Given to the chat template; `none` turns thinking off where it can."
    )
    summary: str | None = ignored("The reasoning itself is sent.")
    generate_summary: str | None = ignored()


def _kind_of_choice(value: Any) -> str | None:
    match value:
        case str():
            return "<mode>"
        case dict():
            return "<function>"
        case _:
            return None


class ResponseRequest(RequestModel):
    """A request for a response."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "context_management": "send what the context has room for",
        "conversation": "nothing is stored; send the whole conversation as input",
        "moderation": "the gateway moderates nothing; leave it out",
        "previous_response_id": "nothing is stored; send the whole conversation as input",
        "prompt": "nothing is stored; send the prompt as instructions and input",
    }

    model: str = Field(description="A name that /v1/models lists.")
    input: ResponseInput = Field(description="A text, or the items of the conversation.")
    instructions: str | None = Field(None, description="A message of the system before the input.")
    max_output_tokens: int | None = Field(
        None, ge=1, le=2**32 - 1, description="Most tokens of the answer; default: the context."
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 takes the likeliest token; default: the model's own."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Choose among tokens of this share of probability."
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Lowers a token's logit once it has appeared."
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Lowers a token's logit for each time it has appeared."
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Log probabilities, and of this many likeliest tokens."
    )
    include: list[str] | None = Field(
        None, description=f"{_LOGPROBS} returns log probabilities; others are ignored."
    )
    text: TextOptions | None = Field(None, description="How the answer is written.")
    tools: Annotated[list[ResponseTool], FAIL_FAST] | None = Field(
        None, max_length=128, description="The functions that the model may call."
    )
    tool_choice: (
        Annotated[
            Annotated[str, Tag("<mode>")] | Annotated[NamedFunction, Tag("<function>")],
            Discriminator(
                _kind_of_choice,
                custom_error_type="wrong_type",
                custom_error_message=(
                    "must be none, auto, required or an object that names a function"
                ),
            ),
        ]
        | None
    ) = Field(None, description="none, auto, required, or the function to call.")
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    max_tool_calls: int | None = ignored("Limits tools that OpenAI runs; the gateway runs none.")
    reasoning: ReasoningOptions | None = Field(None, description="How much the model thinks.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    store: bool | None = only(False, description="Nothing is stored.")
    background: bool | None = only(False, description="Nothing is stored.")
    truncation: str | None = only("disabled", description="An input that is too long is an error.")
    metadata: dict[str, str] | None = Field(None, description="Comes back in the response.")
    user: str | None = ignored()
    safety_identifier: str | None = ignored()
    service_tier: str | None = ignored()
    prompt_cache_key: str | None = ignored("Prompts are always cached.")
    prompt_cache_retention: str | None = ignored()
    prompt_cache_options: dict[str, Any] | None = ignored()

    _limits = whole_numbers("max_output_tokens", "top_logprobs", "max_tool_calls")

    def conversation(self) -> Conversation:
        """Makes the message of the call.

        Raises:
            ApiError: Fields contradict each other, or ask for what the gateway cannot do.
        """
        self._check_neutral()
        chat = llm_pb2.ChatRequest()
        sampling = chat.options.sampling
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if value is not None:
                setattr(sampling, name, value)
        if self.max_output_tokens is not None:
            sampling.max_tokens = self.max_output_tokens
        if self.top_logprobs or _LOGPROBS in (self.include or ()):
            sampling.logprobs = self.top_logprobs or 0
        if self.text and self.text.format:
            asked = self.text.format
            if asked.type == "json_schema" and asked.schema_ is None:
                # json_object asks for any object.
                raise ApiError.invalid(
                    "text.format.schema",
                    "text.format.schema is missing; for any JSON object, use json_object",
                    code="missing_required_parameter",
                )
            fill_format(asked.type, asked.schema_, "text.format", "text.format", sampling)
        conversation = Conversation(chat)
        if self.instructions:
            conversation.add_text(llm_pb2.ROLE_SYSTEM, self.instructions, "instructions")
        if isinstance(self.input, str):
            conversation.add_text(llm_pb2.ROLE_USER, self.input, "input")
        else:
            conversation.add_items(self.input)
        self._fill_tools(chat)
        if self.reasoning:
            fill_reasoning_effort(self.reasoning.effort, chat.template_arguments)
        return conversation

    def params(self, conversation: Conversation, prefix: str) -> dict[str, str]:
        """Returns the client's names of fields; see `ModelCall.params`."""
        sampling = f"{prefix}options.sampling."
        params = {
            prefix: "",
            f"{prefix}messages": "input",
            f"{prefix}options.": "",
            f"{prefix}single_tool_call": "parallel_tool_calls",
            f"{prefix}template_arguments": "reasoning.effort",
            f"{prefix}tool_choice.": "tool_choice",
            sampling: "",
            f"{sampling}constraint": "text.format",
            f"{sampling}constraint.json_schema": "text.format.schema",
            f"{sampling}logprobs": "top_logprobs",
            f"{sampling}max_tokens": "max_output_tokens",
        }
        params |= {f"{prefix}{path}": name for path, name in conversation.params.items()}
        for index in range(len(self.tools or ())):
            sent = f"{prefix}tools[{index}].parameters_json_schema"
            params[sent] = f"tools[{index}].parameters"
        return params

    def _fill_tools(self, chat: llm_pb2.ChatRequest) -> None:
        for index, tool in enumerate(self.tools or ()):
            if tool.type != "function":
                raise ApiError.invalid(
                    f"tools[{index}].type",
                    f"tools[{index}].type: must be function, not {shortened(tool.type, 80)!r}: the"
                    " gateway runs no tools itself",
                    code="unsupported_parameter",
                )
            fill_tool(tool, chat, f"tools[{index}]")
        choice = self.tool_choice
        if isinstance(choice, NamedFunction):
            if choice.type != "function" or choice.name is None:
                raise ApiError.invalid(
                    "tool_choice",
                    'tool_choice: must be none, auto, required or {"type": "function", "name": …}',
                    code="unsupported_parameter",
                )
            fill_choice(None, choice.name, self.parallel_tool_calls, chat)
        else:
            fill_choice(choice, None, self.parallel_tool_calls, chat)

    def _check_neutral(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise ApiError.invalid(
                "stream_options",
                "stream_options: only with stream: true; leave it out",
                code="invalid_value",
            )
        if self.store:
            raise _unsupported("store", "must be false or left out: the gateway stores nothing")
        if self.background:
            raise _unsupported("background", "must be false: nothing is stored to be fetched later")
        if self.truncation not in (None, "disabled"):
            raise _unsupported("truncation", "must be disabled: shorten the input yourself")
        if self.text and self.text.verbosity not in (None, "medium"):
            raise _unsupported("text.verbosity", "must be medium: ask for length in the input")


def _unsupported(param: str, problem: str) -> ApiError:
    return ApiError.invalid(param, f"{param}: {problem}", code="unsupported_parameter")
