"""Values of LLM calls: messages and sampling options of requests, and the parts of responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypedDict

__all__ = [
    "Completion",
    "Delta",
    "Embeddings",
    "Finish",
    "FinishReason",
    "GenerateOptions",
    "LlmModel",
    "LlmTimings",
    "Message",
    "ModelKind",
    "PositionLogprobs",
    "Role",
    "TokenLogprob",
    "Tokenization",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
]


class Role(StrEnum):
    """Author of a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    DEVELOPER = "developer"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as the model made it.

    Attributes:
        id: Id of the call; the message with the result repeats it.
        name: Name of the tool.
        arguments: The arguments as JSON text. It is only the beginning of an object if the answer
            reached ``max_tokens``.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Author of the message.
        content: Text of the message.
        tool_calls: Calls that the assistant made in this message.
        tool_call_id: Id of the call that a message of a tool answers.
        reasoning: What the assistant thought before it answered.
        name: Name of the author, for chat templates that use it.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call.

    Attributes:
        name: Name of the tool: up to 64 letters, digits, underscores and hyphens.
        description: What the tool does, and when to call it.
        parameters: JSON Schema of the arguments: text, a mapping, or a pydantic model class;
            ``None`` for a tool without arguments.
        strict: Enforce the schema even if the model decides itself to call the tool.
    """

    name: str
    description: str = ""
    parameters: str | Mapping[str, object] | type | None = None
    strict: bool = False


class GenerateOptions(TypedDict, total=False):
    """Options of a generation request; omitted options take the model's own default.

    Attributes:
        model: Name of the model; the server's model unless set.
        version: Version of the model.
        max_tokens: Most tokens to generate; as many as the context has room for unless set.
        min_tokens: Fewest tokens to generate before the answer may end.
        temperature: 0 always takes the likeliest token; higher values, up to 2, make the choice
            more random.
        top_p: Choose among the likeliest tokens that together have this probability.
        top_k: Choose among this many likeliest tokens; 0 means all.
        min_p: Exclude tokens less likely than this share of the likeliest one.
        presence_penalty: From -2 to 2, subtracted once for a token that has appeared.
        frequency_penalty: From -2 to 2, subtracted for each time that a token has appeared.
        repetition_penalty: Values above 1 make repetitions rarer.
        seed: Makes the random choice repeatable. The same seed and request give the same text while
            the server runs no other request. If the model is ``batch_invariant``
            (:class:`LlmModel`), they do so whatever else the server runs.
        stop: Texts that end the answer when they appear in it.
        stop_token_ids: Tokens that end the answer.
        include_stop_string: Keep the stop string in the answer.
        ignore_end_of_text: Continue past the model's end-of-text token.
        logprobs: Also return the log probabilities of this many likeliest tokens at each position;
            see :class:`TokenLogprob`.
        logit_bias: Values from -100 to 100, added to the logits, by token id.
        json_schema: The answer is JSON that this schema allows: text, a mapping, or a pydantic
            model class.
        regex: The answer matches this regular expression.
        choice: The answer is one of these texts.
        lora_adapter: Name of a LoRA adapter of the server.
        priority: Smaller values run first, if the server schedules by priority.
    """

    model: str
    version: str
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop_string: bool
    ignore_end_of_text: bool
    logprobs: int
    logit_bias: Mapping[int, float]
    json_schema: str | Mapping[str, object] | type
    regex: str
    choice: Sequence[str]
    lora_adapter: str
    priority: int


class FinishReason(StrEnum):
    """Why an answer ended."""

    UNSPECIFIED = "unspecified"
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request used.

    Attributes:
        prompt_tokens: Tokens of the prompt, including those of the chat template.
        completion_tokens: Tokens of the answer.
        cached_prompt_tokens: Tokens of the prompt that the server had in its cache.
        reasoning_tokens: Tokens of the answer that were reasoning.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LlmTimings:
    """Times of a request, in seconds.

    Attributes:
        queue_s: Time in the engine's queue.
        time_to_first_token_s: Time from the server's receipt of the request to its first token.
        mean_inter_token_s: Mean time between two tokens; ``None`` for fewer than two tokens.
        max_inter_message_s: Longest time between two messages; ``None`` for fewer than two
            messages.
        total_s: Time from the server's receipt of the request to its last token.
    """

    queue_s: float
    time_to_first_token_s: float
    mean_inter_token_s: float | None
    max_inter_message_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended.

    Attributes:
        reason: Why the answer ended.
        stop_string: The stop string that ended the answer; empty when none did.
        stop_token_id: The stop token that ended the answer; ``None`` when none did.
        usage: Tokens that the request used.
        timings: Times of the request.
    """

    reason: FinishReason
    stop_string: str
    stop_token_id: int | None
    usage: Usage
    timings: LlmTimings


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that the model chose or might have chosen.

    Log probabilities and ranks are the model's own, before temperature, bias, penalties and
    constraints.

    Attributes:
        token_id: Id of the token.
        token: Text of the token; bytes that are not whole characters appear as U+FFFD.
        logprob: Natural logarithm of its probability.
        rank: Rank among all tokens, 1 for the likeliest.
        token_bytes: Bytes of the token; those of all chosen tokens are the UTF-8 of the answer.
    """

    token_id: int
    token: str
    logprob: float
    rank: int
    token_bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log probabilities at one position of the answer.

    Attributes:
        chosen: The chosen token.
        top: The likeliest tokens, best first.
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next part of a call of a tool.

    Attributes:
        index: Number of the call in the answer, from 0.
        id: Id of the call; only its first part has it.
        name: Name of the tool; only the first part has it.
        arguments: Text of the arguments since the last part.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """The next part of a streamed answer.

    Attributes:
        text: Text since the last delta; may be empty.
        token_ids: Token ids since the last delta.
        logprobs: One entry for each new token, if the request asked for them.
        finish: How the answer ended; only the last delta has it.
        reasoning: Text of the model's reasoning since the last delta; not part of ``text``.
        tool_calls: New parts of calls of tools.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish: Finish | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer.

    Attributes:
        text: Text of the answer.
        token_ids: Token ids of the answer.
        logprobs: One entry for each token, if the request asked for them.
        finish: How the answer ended.
        reasoning: The model's reasoning; not part of ``text``.
        tool_calls: The tools that the model called.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    finish: Finish
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The tokens of a text or a conversation.

    Attributes:
        token_ids: Ids of the tokens.
        tokens: Texts of the tokens.
        max_context_tokens: Longest context that the server allows, in tokens.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    max_context_tokens: int

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of texts, in the order of the request.

    Attributes:
        vectors: One vector of Euclidean length 1 for each text.
        usage: Tokens that the request used.
    """

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage


class ModelKind(StrEnum):
    """Whether a model generates text or makes vectors."""

    UNSPECIFIED = "unspecified"
    GENERATE = "generate"
    EMBED = "embed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmModel:
    """A language model and how it is served.

    Attributes:
        name: Name of the model.
        version: Version of the model.
        ready: Whether the model answers now.
        kind: Whether the model generates text or makes vectors.
        engine: The engine and its version.
        precision: Numeric type that the engine computes in.
        max_context_tokens: Longest context, prompt and answer together.
        vocabulary_size: Size of the vocabulary; token ids are below it.
        lora_adapters: LoRA adapters that requests may name.
        description: What the model is and where its weights come from.
        loaded_at: When the model became ready; ``None`` if it is not ready.
        batch_invariant: Whether the same request and seed give the same text whatever else runs.
        tool_parser: vLLM's parser for calls of tools; empty if the model calls tools only on
            demand.
        reasoning_parser: vLLM's parser for reasoning; empty if the model does not reason.
    """

    name: str
    version: str
    ready: bool
    kind: ModelKind
    engine: str
    precision: str
    max_context_tokens: int
    vocabulary_size: int
    lora_adapters: tuple[str, ...]
    description: str
    loaded_at: datetime | None
    batch_invariant: bool = False
    tool_parser: str = ""
    reasoning_parser: str = ""
