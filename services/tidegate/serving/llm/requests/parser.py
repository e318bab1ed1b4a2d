"""Reads requests: pure functions from protobuf messages to the values that the server works with.

The comments in ``llm.proto`` are the contract. This module checks every range in them, before the
server tokenizes or queues anything. It reports all violations of a request at once, each with the
path of its field in the message of the client. The parameter `at` is that path.

The module depends on neither vLLM nor a clock nor the event loop.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from tidegate.chassis.errors import FieldViolation, InvalidArgument, NotFound
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.requests.messages import ChatMessage, read_messages
from tidegate.serving.llm.requests.sampling import (
    Constraint,
    Sampling,
    SamplingDefaults,
    read_sampling,
)
from tidegate.serving.llm.requests.tools import (
    ToolMode,
    ToolUse,
    read_tool_use,
    read_tools,
)

__all__ = [
    "ChatPrompt",
    "ModelFacts",
    "Options",
    "TextPrompt",
    "TokenPrompt",
    "check_model",
    "check_token_ids",
    "read_chat",
    "read_conversation",
    "read_generate",
    "read_prompt",
]

# Arguments of transformers' apply_chat_template that only the server may set. With the first one a
# client could replace the template itself.
_RESERVED_ARGUMENTS: Final = frozenset(
    {
        "chat_template",
        "conversation",
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts about a model that requests are checked against.

    Attributes:
        name: The model's name.
        version: The model's version.
        vocabulary_size: Token ids are below this number.
        max_context_tokens: Most tokens of prompt and answer together.
        lora_adapters: Names of the LoRA adapters.
        schedules_by_priority: Whether the engine uses a request's priority.
        has_raw_logprobs: Whether log probabilities are the model's own under a constraint, too.
        defaults: Sampling defaults of the model's generation configuration.
        tool_parser: Name of vLLM's parser for calls of tools; empty for none.
        reasoning_parser: Name of vLLM's parser for reasoning; empty for none.
        enforces_strict_tools: Whether the engine can enforce a tool's schema if the model decides
            to call the tool.
    """

    name: str
    version: str
    vocabulary_size: int
    max_context_tokens: int
    lora_adapters: tuple[str, ...] = ()
    schedules_by_priority: bool = False
    has_raw_logprobs: bool = True
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    tool_parser: str = ""
    reasoning_parser: str = ""
    enforces_strict_tools: bool = False


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text to continue or embed.

    Attributes:
        text: The text.
        at: Path of the text in the request, for later errors.
        special_tokens_as_text: Whether names of special tokens in the text are text.
    """

    text: str
    at: str
    special_tokens_as_text: bool = False


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue or embed; `at` is their path in the request."""

    token_ids: list[int]
    at: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation to answer.

    Attributes:
        messages: The messages, in the form of chat templates.
        template_arguments: Further variables of the template.
        continues_last: Whether the answer continues the last message.
        at: Path of the messages in the request.
        tool_use: The tools and how the model uses them; None without tools.
    """

    messages: list[ChatMessage]
    template_arguments: dict[str, Any]
    continues_last: bool
    at: str
    tool_use: ToolUse | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """Generation options.

    Attributes:
        sampling: The sampling parameters.
        lora_adapter: Name of the LoRA adapter; empty for none.
        priority: A request with a smaller number runs first.
        at: Path of the options in the request.
        constraints: The constraints to check before the engine gets the last one of them, each with
            the path of its field.
    """

    sampling: Sampling
    lora_adapter: str
    priority: int
    at: str
    constraints: tuple[tuple[Constraint, str], ...] = ()

    def constrained(self, constraints: tuple[tuple[Constraint, str], ...]) -> "Options":
        """Returns the options with other constraints."""
        sampling = replace(self.sampling, constraint=constraints[-1][0] if constraints else None)
        return replace(self, sampling=sampling, constraints=constraints)


def read_generate(
    request: llm_pb2.GenerateRequest, facts: ModelFacts, at: str = ""
) -> tuple[TextPrompt | TokenPrompt, Options]:
    """Reads a request to continue a prompt.

    Args:
        request: The client's request.
        facts: The facts about the served model.
        at: Path of `request` in the client's message, with a dot at its end; empty if the request
            is the message itself.

    Raises:
        NotFound: The server does not have the model, version or adapter.
        InvalidArgument: Fields are wrong; the error names all of them.
    """
    violations: list[FieldViolation] = []
    prompt = read_prompt(request.prompt, facts, f"{at}prompt", violations)
    options = _read_options(request.options, facts, f"{at}options", violations)
    _raise_if_any(violations)
    return prompt, options


def read_chat(
    request: llm_pb2.ChatRequest, facts: ModelFacts, at: str = ""
) -> tuple[ChatPrompt, Options]:
    """Reads a request to answer a conversation; see `read_generate`."""
    violations: list[FieldViolation] = []
    messages = read_messages(request.messages, f"{at}messages", violations)
    if request.messages:
        ends_with_assistant = request.messages[-1].role == llm_pb2.ROLE_ASSISTANT
        if request.continue_last_message and not ends_with_assistant:
            violations.append(
                FieldViolation(
                    f"{at}continue_last_message", "needs a last message of the assistant"
                )
            )
        if ends_with_assistant and not request.continue_last_message:
            violations.append(
                FieldViolation(
                    f"{at}messages[{len(messages) - 1}].role",
                    "the last message is the assistant's; set continue_last_message to continue it",
                )
            )
        if request.continue_last_message and request.messages[-1].tool_calls:
            violations.append(
                FieldViolation(
                    f"{at}continue_last_message",
                    "cannot continue a message with tool calls; the results of the calls come next",
                )
            )
    arguments = _read_template_arguments(request, at, violations)
    tool_use = read_tool_use(
        request,
        at,
        violations,
        tool_parser=facts.tool_parser,
        enforces_strict=facts.enforces_strict_tools,
    )
    options = _read_options(request.options, facts, f"{at}options", violations)
    if options.sampling.prompt_logprobs is not None:
        violations.append(
            FieldViolation(
                f"{at}options.sampling.prompt_logprobs", "is only for Generate; leave it out"
            )
        )
    if tool_use is not None and tool_use.mode is not ToolMode.NONE:
        _check_options_with_tools(tool_use, options, facts, violations)
    _raise_if_any(violations)
    if tool_use is not None and tool_use.is_enforced:
        options = options.constrained(tool_use.constraints())
    return (
        ChatPrompt(messages, arguments, request.continue_last_message, f"{at}messages", tool_use),
        options,
    )


def read_conversation(conversation: llm_pb2.Conversation, at: str) -> ChatPrompt:
    """Reads a conversation that is only tokenized.

    Raises:
        InvalidArgument: Fields are wrong; the error names all of them.
    """
    violations: list[FieldViolation] = []
    messages = read_messages(conversation.messages, f"{at}.messages", violations)
    tools = tuple(read_tools(conversation.tools, f"{at}.tools", violations))
    _raise_if_any(violations)
    tool_use = ToolUse(tools, ToolMode.AUTO, "", single=False, at=f"{at}.tools") if tools else None
    return ChatPrompt(messages, {}, False, f"{at}.messages", tool_use)


def read_prompt(
    prompt: llm_pb2.Prompt, facts: ModelFacts, at: str, violations: list[FieldViolation]
) -> TextPrompt | TokenPrompt:
    """Reads a prompt and adds its errors to `violations`."""
    match prompt.WhichOneof("content"):
        case "text":
            if not prompt.text:
                violations.append(FieldViolation(f"{at}.text", "must not be empty"))
            return TextPrompt(prompt.text, f"{at}.text", prompt.special_tokens_as_text)
        case "token_ids":
            ids = list(prompt.token_ids.ids)
            if not ids:
                violations.append(FieldViolation(f"{at}.token_ids.ids", "must not be empty"))
            check_token_ids(ids, facts, f"{at}.token_ids.ids", violations)
            if prompt.special_tokens_as_text:
                violations.append(
                    FieldViolation(
                        f"{at}.special_tokens_as_text", "applies to text only; leave it out"
                    )
                )
            return TokenPrompt(ids, f"{at}.token_ids")
        case _:
            violations.append(FieldViolation(at, "set text or token_ids"))
            return TextPrompt("", at)


def check_token_ids(
    ids: list[int], facts: ModelFacts, at: str, violations: list[FieldViolation]
) -> None:
    """Adds the first id that is not in the vocabulary to `violations`."""
    if ids and max(ids) >= facts.vocabulary_size:
        index = next(i for i, each in enumerate(ids) if each >= facts.vocabulary_size)
        violations.append(
            FieldViolation(
                f"{at}[{index}]",
                f"{ids[index]} is not in the vocabulary; must be below {facts.vocabulary_size}",
            )
        )


def check_model(facts: ModelFacts, name: str, version: str = "") -> None:
    """Refuses a model or version that the server does not serve; empty names mean the served one.

    Raises:
        NotFound: The server serves another model or version.
    """
    if (name and name != facts.name) or (version and version != facts.version):
        asked = f"{name or facts.name} {version}".rstrip()
        raise NotFound(
            f"no model {asked} here; this server serves {facts.name} {facts.version}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": facts.name, "version": facts.version},
        )


def _read_options(
    options: llm_pb2.GenerationOptions,
    facts: ModelFacts,
    at: str,
    violations: list[FieldViolation],
) -> Options:
    check_model(facts, options.model, options.version)
    if options.lora_adapter and options.lora_adapter not in facts.lora_adapters:
        known = ", ".join(facts.lora_adapters) or "none"
        raise NotFound(
            f"no LoRA adapter {options.lora_adapter!r} here; there is: {known}",
            reason="LORA_ADAPTER_NOT_FOUND",
        )
    if options.priority and not facts.schedules_by_priority:
        violations.append(
            FieldViolation(f"{at}.priority", "must be 0: this server runs requests in order")
        )
    sampling = read_sampling(
        options.sampling, facts.vocabulary_size, facts.defaults, f"{at}.sampling", violations
    )
    if sampling.prompt_logprobs is not None and facts.lora_adapters:
        # vLLM 0.32 applies adapters to the prompt's logits as if they were those of one step. On a
        # CPU its engine dies.
        violations.append(
            FieldViolation(
                f"{at}.sampling.prompt_logprobs",
                "is not possible on a server with LoRA adapters; ask one without",
            )
        )
    constraints: tuple[tuple[Constraint, str], ...] = ()
    if sampling.constraint is not None:
        _check_logprobs(sampling, facts, at, violations)
        path = f"{at}.sampling.constraint.{sampling.constraint.kind}"
        constraints = ((sampling.constraint, path),)
    return Options(sampling, options.lora_adapter, options.priority, at, constraints)


def _check_logprobs(
    sampling: Sampling, facts: ModelFacts, at: str, violations: list[FieldViolation]
) -> None:
    """Refuses log probabilities of a constrained answer on an engine that masks them."""
    if sampling.logprobs is not None and not facts.has_raw_logprobs:
        violations.append(
            FieldViolation(
                f"{at}.sampling.logprobs",
                "cannot be combined with a constraint on this server, and a demanded or strict tool"
                " call is one: its engine has log probabilities only of tokens that the constraint"
                " allows; leave one of them out",
            )
        )


def _check_options_with_tools(
    tool_use: ToolUse, options: Options, facts: ModelFacts, violations: list[FieldViolation]
) -> None:
    at, sampling = options.at, options.sampling
    if sampling.constraint is not None:
        violations.append(
            FieldViolation(
                f"{at}.sampling.constraint",
                "cannot be combined with tools: an answer of its form could not call one; leave it"
                " out, or set the tool_choice MODE_NONE",
            )
        )
        return
    is_strict = any(each.strict for each in tool_use.tools)
    if not tool_use.is_enforced and not is_strict:
        return
    _check_logprobs(sampling, facts, at, violations)
    if sampling.ignore_end_of_text:
        violations.append(
            FieldViolation(
                f"{at}.sampling.ignore_end_of_text",
                "cannot be combined with enforced tool calls: the answer ends with the last one",
            )
        )


def _read_template_arguments(
    request: llm_pb2.ChatRequest, at: str, violations: list[FieldViolation]
) -> dict[str, Any]:
    if not request.HasField("template_arguments"):
        return {}
    # A Struct has no whole numbers, only doubles.
    arguments: dict[str, Any] = _whole_numbers(MessageToDict(request.template_arguments))
    violations.extend(
        FieldViolation(
            f"{at}template_arguments.{name}",
            "has a field of its own in the request; set that instead"
            if name == "tools"
            else "is reserved for the server; leave it out",
        )
        for name in sorted(arguments.keys() & _RESERVED_ARGUMENTS)
    )
    return arguments


def _whole_numbers(value: Any) -> Any:
    """Turns whole floats into integers."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _whole_numbers(each) for key, each in value.items()}
        case list():
            return [_whole_numbers(each) for each in value]
        case _:
            return value


def _raise_if_any(violations: list[FieldViolation]) -> None:
    if violations:
        raise InvalidArgument(violations)
