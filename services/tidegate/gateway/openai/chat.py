"""Chat completions: the request, its call, and the reply in one piece."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from google.protobuf.struct_pb2 import Struct
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.errors import ApiError
from tidegate.gateway.event_stream import EventStream
from tidegate.gateway.openai.calls import (
    ModelCall,
    begin_call,
    find_model,
    finish_reason,
    in_stream,
    new_id,
    prompt_estimate,
    usage_of,
)
from tidegate.gateway.openai.chat_stream import chat_frames
from tidegate.gateway.openai.encoding import chat_logprobs, data_frame
from tidegate.gateway.openai.fields import FAIL_FAST, ignored, only, whole_numbers
from tidegate.gateway.openai.messages import ChatMessage, fill_message, message_params
from tidegate.gateway.openai.reading import read_request
from tidegate.gateway.openai.sampling import (
    SAMPLING_UNSUPPORTED,
    SamplingFields,
    sampling_params,
)
from tidegate.gateway.openai.tools import ChatTool, ChatToolChoice, fill_tools, named_tool
from tidegate.gateway.responses import json_response
from tidegate.llm.v1 import llm_pb2

__all__ = ["ChatCompletionRequest", "create_chat_completion"]

_MAX_ARGUMENT_DEPTH: Final = 20


class ChatCompletionRequest(SamplingFields):
    """A request for a chat completion."""

    unsupported: ClassVar[Mapping[str, str]] = {
        **SAMPLING_UNSUPPORTED,
        "audio": "the model does not speak; leave it out",
        "chat_template": "the model's own chat template is used",
        "documents": "write them into a message",
        "function_call": "use tool_choice",
        "functions": "use tools",
        "moderation": "the gateway moderates nothing; leave it out",
        "prediction": "leave it out; the answer is the same without it",
        "web_search_options": "the gateway searches nothing; declare a tool of your own",
    }

    messages: Annotated[list[ChatMessage], FAIL_FAST] = Field(
        min_length=1, description="The conversation so far, oldest first."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=2**32 - 1, description="Most tokens of an answer; default: the context."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=2**32 - 1, description="The older name of max_completion_tokens."
    )
    logprobs: bool | None = Field(None, description="Return log probabilities of the tokens.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="And those of this many likeliest tokens; with logprobs."
    )
    tools: Annotated[list[ChatTool], FAIL_FAST] | None = Field(
        None, max_length=128, description="The functions that the model may call."
    )
    tool_choice: ChatToolChoice | None = Field(
        None, description="none, auto, required, or the function to call."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="false: at most one call. Ignored without tools."
    )
    reasoning_effort: str | None = Field(
        None, description="Given to the chat template; `none` turns thinking off where it can."
    )
    modalities: list[str] | None = only(["text"], description="The model only writes.")
    verbosity: str | None = only("medium", description="Ask for length in a message.")
    metadata: dict[str, Any] | None = ignored()
    store: bool | None = ignored("Nothing is stored.")
    service_tier: str | None = ignored()
    safety_identifier: str | None = ignored()
    prompt_cache_key: str | None = ignored("Prompts are always cached.")
    prompt_cache_retention: str | None = ignored()
    prompt_cache_options: dict[str, Any] | None = ignored()
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Values for further variables of the chat template."
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the last message, which must be the assistant's."
    )
    add_generation_prompt: bool | None = Field(
        None, description="The opposite of continue_final_message; only that."
    )
    include_reasoning: bool | None = only(True, description="Leave out the field `reasoning`.")

    _limits = whole_numbers("max_completion_tokens", "max_tokens", "top_logprobs")

    def message(self) -> llm_pb2.ChatRequest:
        """Makes the message of the call.

        Raises:
            ApiError: Fields contradict each other, or ask for what the model cannot do.
        """
        chat = llm_pb2.ChatRequest()
        self.fill(chat.options)
        sampling = chat.options.sampling
        if (max_tokens := self.most_tokens) is not None:
            sampling.max_tokens = max_tokens
        if self.logprobs:
            sampling.logprobs = self.top_logprobs or 0
        elif self.top_logprobs is not None:
            raise _invalid("top_logprobs", "needs logprobs: true")
        for index, each in enumerate(self.messages):
            fill_message(each, chat.messages.add(), f"messages[{index}]")
        fill_tools(self.tools, self.tool_choice, self.parallel_tool_calls, chat)
        self._fill_template_arguments(chat.template_arguments)
        chat.continue_last_message = bool(self.continue_final_message)
        self._check_neutral()
        return chat

    @property
    def most_tokens(self) -> int | None:
        """The limit of an answer's tokens, from either field.

        Raises:
            ApiError: They differ.
        """
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise _invalid("max_tokens", "differs from max_completion_tokens; leave it out")
        return limits.pop() if limits else None

    @property
    def characters(self) -> int:
        """The size of the conversation, for an estimate of its tokens."""
        return sum(
            len(each.content)
            if isinstance(each.content, str)
            else sum(len(part.text or "") for part in each.content or ())
            for each in self.messages
        )

    def params(self, prefix: str) -> dict[str, str]:
        """Returns the client's names of fields; see `ModelCall.params`."""
        params = sampling_params(prefix, self) | {
            prefix: "",
            f"{prefix}continue_last_message": "continue_final_message",
            f"{prefix}single_tool_call": "parallel_tool_calls",
            f"{prefix}template_arguments": "chat_template_kwargs",
            f"{prefix}tool_choice.": "tool_choice",
        }
        limit = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
        params[f"{prefix}options.sampling.max_tokens"] = limit
        params[f"{prefix}options.sampling.logprobs"] = "top_logprobs"
        for index in range(len(self.tools or ())):
            at = f"{prefix}tools[{index}]"
            params[f"{at}."] = f"tools[{index}].function."
            params[f"{at}.parameters_json_schema"] = f"tools[{index}].function.parameters"
        for index, each in enumerate(self.messages):
            params |= message_params(f"messages[{index}]", each, index, prefix)
        return params

    def _fill_template_arguments(self, arguments: Struct) -> None:
        fill_reasoning_effort(self.reasoning_effort, arguments)
        if self.chat_template_kwargs:
            if _depth(self.chat_template_kwargs) > _MAX_ARGUMENT_DEPTH:
                raise _invalid(
                    "chat_template_kwargs", f"is nested more than {_MAX_ARGUMENT_DEPTH} levels deep"
                )
            try:
                arguments.update(self.chat_template_kwargs)
            except (ValueError, OverflowError) as error:
                raise _invalid("chat_template_kwargs", "has a number that is too large") from error

    def _check_neutral(self) -> None:
        if self.modalities is not None and self.modalities != ["text"]:
            raise _unsupported("modalities", 'must be ["text"]: the model only writes')
        if self.verbosity not in (None, "medium"):
            raise _unsupported("verbosity", "must be medium: ask for length in a message")
        if self.include_reasoning is False:
            raise _unsupported("include_reasoning", "must be true: leave the field `reasoning`")
        continues = bool(self.continue_final_message)
        if self.add_generation_prompt is not None and self.add_generation_prompt == continues:
            raise _invalid(
                "add_generation_prompt",
                f"must be {'false' if continues else 'true'} with continue_final_message:"
                f" {'true' if continues else 'false'}; leave it out",
            )


def fill_reasoning_effort(effort: str | None, arguments: Struct) -> None:
    """Tells the chat template how much to think, in the two variables that templates have.

    vLLM's server does the same.
    """
    if effort is not None:
        arguments["reasoning_effort"] = effort
        arguments["enable_thinking"] = effort != "none"


async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation."""
    asked = await read_request(request, ChatCompletionRequest)
    model = find_model(request, asked.model)
    chat = asked.message()
    streams = bool(asked.stream)
    call = begin_call(
        request,
        model,
        "chat",
        lambda: asked.params("" if streams else "chat."),
        streams=streams,
        prompt_tokens=prompt_estimate(asked.characters),
        answer_tokens=(asked.most_tokens or 0) * (asked.n or 1),
    )
    call.fill(chat.options)
    if streams:
        return EventStream(
            request,
            chat_frames(call, chat, wants_usage=asked.wants_usage),
            error_frame=lambda error: data_frame(in_stream(error)),
            headers=call.reservation.headers,
        )
    async with call.unary():
        complete = await call.complete(llm_pb2.CompleteRequest(chat=chat))
        reply = chat_completion(call, chat, complete)
    return json_response(reply, headers=call.reservation.headers)


def chat_completion(
    call: ModelCall, chat: llm_pb2.ChatRequest, complete: llm_pb2.CompleteResponse
) -> dict[str, Any]:
    """Writes a chat completion.

    Raises:
        ApiError: The server stopped an answer before its end.
    """
    answers = [(complete.output, complete.finish)]
    answers += [(each.output, each.finish) for each in complete.further_answers]
    usages = [finish.usage for _, finish in answers]
    usage = usage_of(usages, usages[:1])
    call.context.prompt_tokens = usage["prompt_tokens"]
    call.context.completion_tokens = usage["completion_tokens"]
    names_tool = named_tool(chat)
    with_logprobs = chat.options.sampling.HasField("logprobs")
    reasons = [finish_reason(finish, names_tool=names_tool) for _, finish in answers]
    call.context.finish_reasons = tuple(reasons)
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": call.created,
        "model": call.model.name,
        "choices": [
            {
                "index": index,
                "message": _message(output),
                "logprobs": (
                    {"content": chat_logprobs(output.logprobs), "refusal": None}
                    if with_logprobs
                    else None
                ),
                "finish_reason": reason,
            }
            for index, ((output, _), reason) in enumerate(zip(answers, reasons, strict=True))
        ],
        "usage": usage,
    }


def _message(output: llm_pb2.Delta) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": output.text if output.text or not output.tool_calls else None,
        "refusal": None,
        "annotations": [],
    }
    if output.reasoning:
        message["reasoning"] = message["reasoning_content"] = output.reasoning
    if output.tool_calls:
        message["tool_calls"] = [
            {
                "id": each.id,
                "type": "function",
                "function": {"name": each.name, "arguments": each.arguments},
            }
            for each in output.tool_calls
        ]
    return message


def _depth(value: Any) -> int:
    match value:
        case Mapping():
            return 1 + max(map(_depth, value.values()), default=0)
        case list():
            return 1 + max(map(_depth, value), default=0)
        case _:
            return 0


def _invalid(param: str, problem: str) -> ApiError:
    return ApiError.invalid(param, f"{param}: {problem}", code="invalid_value")


def _unsupported(param: str, problem: str) -> ApiError:
    return ApiError.invalid(param, f"{param}: {problem}", code="unsupported_parameter")
