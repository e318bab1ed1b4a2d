"""LLM requests made from arguments, and LLM responses read into frozen values."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import grpc

from tidegate.client._shared.errors import (
    InvalidInputError,
    RpcFailure,
    TidegateRpcError,
    error_of,
)
from tidegate.client._shared.llm_types import (
    Completion,
    Delta,
    Embeddings,
    Finish,
    FinishReason,
    GenerateOptions,
    LlmModel,
    LlmTimings,
    Message,
    ModelKind,
    PositionLogprobs,
    Role,
    Tokenization,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tidegate.client._shared.vision import duration_s, timestamp
from tidegate.llm.v1 import llm_pb2

__all__ = [
    "MessageInput",
    "PartialAnswer",
    "PromptInput",
    "chat_request",
    "complete_request",
    "completion",
    "delta",
    "embed_request",
    "embeddings",
    "generate_request",
    "llm_model",
    "tokenization",
    "tokenize_request",
]

MessageInput = Message | Mapping[str, Any]
"""A message: a :class:`Message`, or a mapping with the keys ``role`` and ``content``, and with
other fields of :class:`Message`."""

PromptInput = str | Sequence[int]
"""A prompt: a text, or token ids."""

_ROLES = {role: llm_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}
_FORMS = ("json_schema", "regex", "choice")
_MODES = {
    name: llm_pb2.ToolChoice.Mode.Value(f"MODE_{name.upper()}")
    for name in ("auto", "none", "required")
}
_OPTIONS = ("model", "version", "lora_adapter", "priority")


def generate_request(
    prompt: PromptInput, options: GenerateOptions, *, special_tokens_as_text: bool = False
) -> llm_pb2.GenerateRequest:
    """Makes the request to continue a prompt.

    Raises:
        InvalidInputError: An argument is invalid.
    """
    return llm_pb2.GenerateRequest(
        prompt=_prompt(prompt, special_tokens_as_text), options=_generation_options(options)
    )


def chat_request(
    messages: str | Iterable[MessageInput],
    options: GenerateOptions,
    *,
    continue_last_message: bool = False,
    template_arguments: Mapping[str, Any] | None = None,
    tools: Iterable[Tool] = (),
    tool_choice: str | None = None,
    single_tool_call: bool = False,
) -> llm_pb2.ChatRequest:
    """Makes the request to answer a conversation, or a single message of the user.

    Raises:
        InvalidInputError: An argument is invalid.
    """
    request = llm_pb2.ChatRequest(
        messages=_messages(messages),
        options=_generation_options(options),
        continue_last_message=continue_last_message,
        tools=[_tool(each) for each in tools],
        single_tool_call=single_tool_call,
    )
    if tool_choice in _MODES:
        request.tool_choice.mode = _MODES[tool_choice]
    elif tool_choice is not None:
        request.tool_choice.tool = tool_choice
    if template_arguments is not None:
        try:
            request.template_arguments.update(dict(template_arguments))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"template_arguments must be JSON values: {error}") from error
    return request


def complete_request(
    prompt_or_messages: PromptInput | Sequence[MessageInput],
    options: GenerateOptions,
    *,
    special_tokens_as_text: bool = False,
) -> llm_pb2.CompleteRequest:
    """Makes the request to complete a prompt (a text or token ids) or a conversation (messages).

    Raises:
        InvalidInputError: An argument is invalid.
    """
    if _is_conversation(prompt_or_messages):
        messages = cast("Sequence[MessageInput]", prompt_or_messages)
        return llm_pb2.CompleteRequest(chat=chat_request(messages, options))
    prompt = cast("PromptInput", prompt_or_messages)
    return llm_pb2.CompleteRequest(
        generate=generate_request(prompt, options, special_tokens_as_text=special_tokens_as_text)
    )


def tokenize_request(
    text_or_messages: str | Sequence[MessageInput],
    *,
    model: str,
    omit_special_tokens: bool,
    special_tokens_as_text: bool,
) -> llm_pb2.TokenizeRequest:
    """Makes the request for the tokens of a text or of a conversation."""
    request = llm_pb2.TokenizeRequest(
        model=model,
        omit_special_tokens=omit_special_tokens,
        special_tokens_as_text=special_tokens_as_text,
    )
    if isinstance(text_or_messages, str):
        request.text = text_or_messages
    else:
        request.conversation.messages.extend(_messages(text_or_messages))
    return request


def embed_request(
    inputs: Sequence[PromptInput] | str, *, model: str, special_tokens_as_text: bool
) -> llm_pb2.EmbedRequest:
    """Makes the request for the vectors of one text or several."""
    texts: Sequence[PromptInput] = (inputs,) if isinstance(inputs, str) else inputs
    return llm_pb2.EmbedRequest(
        model=model, inputs=[_prompt(text, special_tokens_as_text) for text in texts]
    )


def delta(response: llm_pb2.GenerateResponse | llm_pb2.ChatResponse) -> Delta:
    """Reads a delta of a streamed answer."""
    return Delta(
        text=response.delta.text,
        token_ids=tuple(response.delta.token_ids),
        logprobs=_logprobs(response.delta.logprobs),
        finish=_finish(response.finish) if response.HasField("finish") else None,
        reasoning=response.delta.reasoning,
        tool_calls=tuple(
            ToolCallDelta(call.index, call.id, call.name, call.arguments)
            for call in response.delta.tool_calls
        ),
    )


def completion(response: llm_pb2.CompleteResponse) -> Completion:
    """Reads a whole answer."""
    return Completion(
        text=response.output.text,
        token_ids=tuple(response.output.token_ids),
        logprobs=_logprobs(response.output.logprobs),
        finish=_finish(response.finish),
        reasoning=response.output.reasoning,
        tool_calls=tuple(
            ToolCall(call.id, call.name, call.arguments) for call in response.output.tool_calls
        ),
    )


def tokenization(response: llm_pb2.TokenizeResponse) -> Tokenization:
    """Reads the tokens of a response."""
    return Tokenization(
        tuple(response.token_ids), tuple(response.tokens), response.max_context_tokens
    )


def embeddings(response: llm_pb2.EmbedResponse) -> Embeddings:
    """Reads the vectors of a response."""
    return Embeddings(
        tuple(tuple(item.values) for item in response.embeddings), _usage(response.usage)
    )


def llm_model(model: llm_pb2.Model) -> LlmModel:
    """Reads the description of a model."""
    kind = llm_pb2.ModelKind.Name(model.kind).removeprefix("MODEL_KIND_").lower()
    return LlmModel(
        name=model.name,
        version=model.version,
        ready=model.ready,
        kind=ModelKind(kind),
        engine=model.engine,
        precision=model.precision,
        max_context_tokens=model.max_context_tokens,
        vocabulary_size=model.vocabulary_size,
        lora_adapters=tuple(model.lora_adapters),
        description=model.description,
        loaded_at=timestamp(model.loaded_at) if model.HasField("loaded_at") else None,
        batch_invariant=model.batch_invariant,
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
    )


class PartialAnswer:
    """The deltas of an answer so far; the server ends every whole answer with a ``finish``."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._deltas: list[Delta] = []

    def add(self, delta: Delta) -> None:
        """Adds the next delta."""
        self._deltas.append(delta)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(delta.text for delta in self._deltas)

    @property
    def finish(self) -> Finish | None:
        """How the answer ended; ``None`` before its end."""
        return self._deltas[-1].finish if self._deltas else None

    def whole(self) -> Completion:
        """Joins the deltas to the whole answer.

        Raises:
            ServerFaultError: The stream ended without a ``finish``.
        """
        finish = self.finish
        if finish is None:
            raise self.truncated()
        return Completion(
            text=self.text,
            token_ids=tuple(token for delta in self._deltas for token in delta.token_ids),
            logprobs=tuple(item for delta in self._deltas for item in delta.logprobs),
            finish=finish,
            reasoning="".join(delta.reasoning for delta in self._deltas),
            tool_calls=self._tool_calls(),
        )

    def _tool_calls(self) -> tuple[ToolCall, ...]:
        calls: dict[int, ToolCall] = {}
        for part in (part for delta in self._deltas for part in delta.tool_calls):
            begun = calls.get(part.index, ToolCall(part.id, part.name, ""))
            calls[part.index] = replace(begun, arguments=begun.arguments + part.arguments)
        return tuple(calls.values())

    def truncated(self) -> TidegateRpcError:
        """Makes the error for a stream that ended without a ``finish``."""
        return error_of(
            RpcFailure(
                code=grpc.StatusCode.DATA_LOSS,
                message="the answer ended without a finish; it may be truncated",
                target=self._target,
            )
        )


def _prompt(prompt: PromptInput, special_tokens_as_text: bool) -> llm_pb2.Prompt:
    if isinstance(prompt, str):
        return llm_pb2.Prompt(text=prompt, special_tokens_as_text=special_tokens_as_text)
    try:
        return llm_pb2.Prompt(token_ids=llm_pb2.TokenIds(ids=prompt))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"a prompt is a text or a list of token ids: {error}") from error


def _messages(messages: str | Iterable[MessageInput]) -> list[llm_pb2.Message]:
    if isinstance(messages, str):
        return [llm_pb2.Message(role=llm_pb2.ROLE_USER, content=messages)]
    return [_message(index, message) for index, message in enumerate(messages)]


def _message(index: int, message: MessageInput) -> llm_pb2.Message:
    try:
        if not isinstance(message, Message):
            message = Message(**{**message, "role": Role(message["role"])})
        return llm_pb2.Message(
            role=_ROLES[message.role],
            content=message.content,
            tool_calls=[
                llm_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
                for call in message.tool_calls
            ],
            tool_call_id=message.tool_call_id,
            reasoning=message.reasoning,
            name=message.name,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        roles = ", ".join(Role)
        raise InvalidInputError(
            f"messages[{index}] must have 'role' (one of {roles}) and 'content' (text), and only"
            f" fields of Message: {error}"
        ) from error


def _tool(tool: Tool) -> llm_pb2.Tool:
    return llm_pb2.Tool(
        name=tool.name,
        description=tool.description,
        parameters_json_schema=(
            "" if tool.parameters is None else _schema(tool.parameters, f"tool {tool.name}")
        ),
        strict=tool.strict,
    )


def _is_conversation(value: PromptInput | Sequence[MessageInput]) -> bool:
    return not isinstance(value, str) and len(value) > 0 and isinstance(value[0], Message | Mapping)


def _generation_options(options: GenerateOptions) -> llm_pb2.GenerationOptions:
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        names = ", ".join(sorted(unknown))
        raise TypeError(f"unknown option {names}; see tidegate.client.GenerateOptions")
    # Here keyword arguments become the fields of a message, so this is a dict with known keys.
    fields = dict(options)
    own = {name: fields.pop(name) for name in _OPTIONS if name in fields}
    forms = {name: fields.pop(name) for name in _FORMS if name in fields}
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    try:
        sampling = llm_pb2.SamplingParameters(**fields)  # type: ignore[arg-type]
        if forms:
            sampling.constraint.CopyFrom(_constraint(forms))
        return llm_pb2.GenerationOptions(sampling=sampling, **own)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"an option has the wrong type or range: {error}") from error


def _constraint(forms: Mapping[str, object]) -> llm_pb2.Constraint:
    if len(forms) > 1:
        raise InvalidInputError(f"{' and '.join(forms)} exclude each other; pass one of them")
    (name, form), *_ = forms.items()
    if name == "regex":
        return llm_pb2.Constraint(regex=cast("str", form))
    if name == "choice":
        options = cast("Sequence[str]", form)
        return llm_pb2.Constraint(choice=llm_pb2.Choices(options=options))
    return llm_pb2.Constraint(json_schema=_schema(form, "json_schema"))


def _schema(form: object, name: str) -> str:
    if isinstance(form, type):
        if not hasattr(form, "model_json_schema"):
            raise InvalidInputError(f"{name}: {form.__name__} is not a pydantic model")
        form = form.model_json_schema()
    return form if isinstance(form, str) else json.dumps(form)


def _finish(finish: llm_pb2.Finish) -> Finish:
    timings = finish.timings
    reason = llm_pb2.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_").lower()
    return Finish(
        reason=FinishReason(reason),
        stop_string=finish.stop_string,
        stop_token_id=finish.stop_token_id if finish.HasField("stop_token_id") else None,
        usage=_usage(finish.usage),
        timings=LlmTimings(
            queue_s=duration_s(timings.queue),
            time_to_first_token_s=duration_s(timings.time_to_first_token),
            mean_inter_token_s=(
                duration_s(timings.mean_inter_token)
                if timings.HasField("mean_inter_token")
                else None
            ),
            max_inter_message_s=(
                duration_s(timings.max_inter_message)
                if timings.HasField("max_inter_message")
                else None
            ),
            total_s=duration_s(timings.total),
        ),
    )


def _usage(usage: llm_pb2.Usage) -> Usage:
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_prompt_tokens,
        usage.reasoning_tokens,
    )


def _logprobs(values: Iterable[llm_pb2.Logprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(_token(value.chosen), tuple(_token(token) for token in value.top))
        for value in values
    )


def _token(token: llm_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.token_id, token.token, token.logprob, token.rank, token.token_bytes)
