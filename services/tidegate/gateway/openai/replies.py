"""The forms of replies, for the description of the API.

Replies are written by hand, because pydantic would cost more than the rest of a request. The tests
check real replies against these models.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "Completion",
    "EmbeddingList",
    "ErrorReply",
    "ModelCard",
    "ModelList",
    "ResponseReply",
]


class Reply(BaseModel):
    """The base of replies: nothing that is not described."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorFacts(Reply):
    """What is wrong."""

    message: str = Field(description="What is wrong and what to do.")
    type: str = Field(description="The kind of error, such as invalid_request_error.")
    param: str | None = Field(description="Path of the field that is wrong.")
    code: str | None = Field(description="A word for programs, such as model_not_found.")


class ErrorReply(Reply):
    """An error."""

    error: ErrorFacts


class PromptDetails(Reply):
    """Of the tokens of the prompt."""

    cached_tokens: int


class CompletionDetails(Reply):
    """Of the tokens of the answer."""

    reasoning_tokens: int


class Usage(Reply):
    """The tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Reply):
    """The log probability of a token."""

    token: str = Field(description="Its text; bytes that are no whole character as \\xf0.")
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The log probability of the chosen token, and of the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """The log probabilities of an answer."""

    content: list[TokenLogprob]
    refusal: None


class FunctionCall(Reply):
    """A call of a function."""

    name: str
    arguments: str = Field(description="JSON; only its beginning if finish_reason is length.")


class ToolCall(Reply):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatAnswer(Reply):
    """The message of an answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any] = Field(max_length=0)
    reasoning: str | None = None
    reasoning_content: str | None = Field(None, description="The same as reasoning.")
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Reply):
    """An answer."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Reply):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Reply):
    """A part of a call of a function."""

    name: str | None = None
    arguments: str


class ToolCallDelta(Reply):
    """A part of a call of a tool; the first one has the id and the name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(Reply):
    """A part of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Reply):
    """A part of an answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Reply):
    """An event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(
        None, description="With include_usage: null, and the usage in the last chunk."
    )


class CompletionLogprobs(Reply):
    """The log probabilities of a choice."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    """An answer, or a part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(Reply):
    """A completion, or an event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Embedding(Reply):
    """The embedding of an input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    """The tokens of a request for embeddings."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Reply):
    """Embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(Reply):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="The served model that answers.")
    parent: str | None = Field(description="Of a LoRA adapter: the model that it changes.")
    max_model_len: int | None = Field(description="Most tokens of prompt and answer.")


class ModelList(Reply):
    """Models."""

    object: Literal["list"]
    data: list[ModelCard]


class ResponseReply(BaseModel):
    """A response; its further fields repeat the request's."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
