"""The values of text generation: messages and sampling that go in, deltas and endings that come."""

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
    "Usage",
]


class Role(StrEnum):
    """Who says a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who says it.
        content: What is said.
    """

    role: Role
    content: str


class GenerateOptions(TypedDict, total=False):
    """What a generating request may say; what is left out takes the model's own default.

    Attributes:
        model: The model's name; the one that the server serves unless set.
        version: Its version.
        max_tokens: Most tokens to generate; as many as the context has room for unless set.
        min_tokens: Fewest tokens before the end may come.
        temperature: 0 takes the likeliest token each time; up to 2 evens the choice.
        top_p: Choose among the likeliest tokens that together have this probability.
        top_k: Choose among this many likeliest tokens; 0 means all.
        min_p: Leave out tokens less likely than this share of the likeliest one.
        presence_penalty: From -2 to 2, taken off tokens that have appeared.
        frequency_penalty: From -2 to 2, taken off for each time that a token appeared.
        repetition_penalty: Above 1 makes repeats rarer.
        seed: Makes the random choice repeatable. The same seed and request give the same text while
            the server runs no other request; whatever else it runs, if its model is
            ``batch_invariant`` (:class:`LlmModel`).
        stop: Texts that end the answer; looked for in the answer alone.
        stop_token_ids: Tokens that end the answer.
        include_stop_string: Keep the stop string in the answer.
        ignore_end_of_text: Go on past the model's own end.
        logprobs: Also return the log probabilities of this many likeliest tokens at each place; see
            :class:`TokenLogprob` for what they mean.
        logit_bias: Added to the logits of token ids, from -100 to 100.
        json_schema: The answer is JSON that this schema allows: text, a mapping, or a pydantic
            model class.
        regex: The answer matches this regular expression.
        choice: The answer is one of these texts.
        lora_adapter: A LoRA adapter that the server has.
        priority: Smaller runs first, where the server schedules by priority.
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


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request used.

    Attributes:
        prompt_tokens: Tokens of the prompt, the chat template's included.
        completion_tokens: Tokens of the answer.
        cached_prompt_tokens: Tokens of the prompt that were still in the server's cache.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class LlmTimings:
    """Where the time of a request went, in seconds.

    Attributes:
        queue_s: Waiting in the engine.
        time_to_first_token_s: From the server's receipt of the request to its first token.
        mean_inter_token_s: Mean time between two tokens; ``None`` when there were fewer than two.
        max_inter_message_s: Longest time between two messages; ``None`` when fewer than two came.
        total_s: From the server's receipt of the request to its last token.
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
        reason: Why.
        stop_string: The stop string that ended it; empty when none did.
        stop_token_id: The stop token that ended it; ``None`` when none did.
        usage: Tokens used.
        timings: Where the time went.
    """

    reason: FinishReason
    stop_string: str
    stop_token_id: int | None
    usage: Usage
    timings: LlmTimings


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was, or might have been, chosen.

    Log probabilities and ranks are the model's own, before temperature, bias, penalties and
    constraints.

    Attributes:
        token_id: Its id.
        token: Its text; bytes that are not whole characters are shown as U+FFFD.
        logprob: The natural logarithm of its probability.
        rank: Its place among all tokens, 1 for the likeliest.
        token_bytes: Its bytes; those of the chosen tokens together are the answer's UTF-8.
    """

    token_id: int
    token: str
    logprob: float
    rank: int
    token_bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log probabilities at one place of the answer.

    Attributes:
        chosen: The token that was chosen.
        top: The likeliest tokens, best first.
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer.

    Attributes:
        text: What is new since the last piece; may be empty.
        token_ids: The token ids that are new.
        logprobs: One for each new token, when they were asked for.
        finish: How the answer ended; in the last piece and only there.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer.

    Attributes:
        text: The text.
        token_ids: Its token ids.
        logprobs: One for each token, when they were asked for.
        finish: How it ended.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The tokens of a text or a conversation.

    Attributes:
        token_ids: Their ids.
        tokens: The text of each.
        max_context_tokens: The longest context that the server runs the model with.
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
        vectors: Each of Euclidean length 1.
        usage: Tokens used.
    """

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage


class ModelKind(StrEnum):
    """What a model does."""

    UNSPECIFIED = "unspecified"
    GENERATE = "generate"
    EMBED = "embed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmModel:
    """A language model and how it is served.

    Attributes:
        name: The model.
        version: Its version.
        ready: Whether it answers now.
        kind: What it does.
        engine: The engine and its version.
        precision: What it computes in.
        max_context_tokens: The longest context, prompt and answer together.
        vocabulary_size: Token ids are below this.
        lora_adapters: The adapters that requests may name.
        description: What the model is and where its weights come from.
        loaded_at: When it became ready; ``None`` unless it is.
        batch_invariant: Whether the same request and seed give the same text whatever else runs.
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
