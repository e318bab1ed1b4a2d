"""Calls of the LLM server: admission before, errors between, and the account of tokens after.

Every call ends with its client, and that frees its place in the engine: unary calls run under
`ModelCall.unary`, and the response of a stream interrupts its calls itself.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from starlette.requests import Request

from tidegate.gateway.backends import LanguageModel
from tidegate.gateway.callers import Reservation
from tidegate.gateway.context import RequestContext, context_of
from tidegate.gateway.errors import ApiError, ErrorType
from tidegate.gateway.interruptions import ending, interruptible
from tidegate.gateway.parts import parts_of
from tidegate.gateway.responses import openai_error
from tidegate.llm.v1 import llm_pb2

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

    from tidegate.llm.v1 import llm_pb2_grpc

__all__ = [
    "ModelCall",
    "aborted",
    "begin_call",
    "begun",
    "find_model",
    "finish_reason",
    "in_stream",
    "new_id",
    "prompt_estimate",
    "usage_of",
]

Asked = TypeVar("Asked", bound=Message)
Answer = TypeVar("Answer", bound=Message)

_CHARACTERS_PER_TOKEN: Final = 4
"""What OpenAI tells its users to reckon with for English text."""

_REASONS: Final[Mapping[int, str]] = {
    llm_pb2.FINISH_REASON_STOP: "stop",
    llm_pb2.FINISH_REASON_LENGTH: "length",
    llm_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


class _StreamMethod(Protocol):
    def __call__(
        self, request: Any, *, timeout: float, metadata: Sequence[tuple[str, str]]
    ) -> Any: ...


@dataclass(slots=True)
class ModelCall:
    """A request that a model answers. Make one with `begin_call`.

    Attributes:
        request: The HTTP request.
        context: What is known of it.
        model: The model.
        reservation: What it took from the caller's budget.
        params: Returns the client's names of fields by the beginnings of their paths in the call's
            message; asked only after an error.
        prompt_tokens: What the prompt is reckoned to have, until its server has counted.
        created: When it began, in seconds of the epoch, as replies tell it.
    """

    request: Request
    context: RequestContext
    model: LanguageModel
    reservation: Reservation
    params: Callable[[], Mapping[str, str]]
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def stub(self) -> "llm_pb2_grpc.LlmServiceAsyncStub":
        """The server of the model."""
        return self.model.backend.stub

    @property
    def timeout_s(self) -> float:
        """How long the call may take."""
        return parts_of(self.request).settings.request_timeout_s

    def fill(self, options: llm_pb2.GenerationOptions) -> None:
        """Names the model in the options of a call."""
        options.model = self.model.facts.name
        options.lora_adapter = self.model.adapter

    @asynccontextmanager
    async def unary(self) -> AsyncIterator[None]:
        """Runs unary calls: they end with the client, their errors are the client's, tokens count.

        Raises:
            ApiError: A call failed, or the gateway shuts down.
            ClientGoneError: The client left.
        """
        parts = parts_of(self.request)
        with self._settled(), self._explained():
            async with interruptible(self.request.receive, parts.in_flight):
                yield

    async def complete(self, message: llm_pb2.CompleteRequest) -> llm_pb2.CompleteResponse:
        """Calls ``Complete``; within `unary`."""
        return await self.answer(self.stub.Complete, message)

    async def answer(
        self, method: "UnaryUnaryMultiCallable[Asked, Answer]", message: Asked
    ) -> Answer:
        """Makes a unary call of any method of the stub."""
        call = method(message, timeout=self.timeout_s, metadata=self.context.metadata)
        with ending(call):
            return await call

    async def answers(
        self, method: "UnaryUnaryMultiCallable[Asked, Answer]", messages: Sequence[Asked]
    ) -> Sequence[Answer]:
        """Makes unary calls at once; the first that fails ends all."""
        calls = [
            method(each, timeout=self.timeout_s, metadata=self.context.metadata)
            for each in messages
        ]
        with ending(*calls):
            return await asyncio.gather(*calls)

    @asynccontextmanager
    async def streamed(
        self, method: _StreamMethod, messages: Sequence[Message]
    ) -> AsyncIterator[list[Any]]:
        """Opens streams of answers, and cancels them at the end of the block.

        Args:
            method: The method of the stub.
            messages: The message of each stream.

        Yields:
            The streams, in the same order.

        Raises:
            ApiError: A call failed.
        """
        with self._settled(), self._explained():
            streams = [
                method(each, timeout=self.timeout_s, metadata=self.context.metadata)
                for each in messages
            ]
            with ending(*streams):
                yield streams

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self.model.backend.error(error, self.params()) from error

    @contextmanager
    def _settled(self) -> Iterator[None]:
        try:
            yield
        finally:
            context = self.context
            if context.completion_tokens and not context.prompt_tokens:
                # The answer was cut off before its server told the usage.
                context.prompt_tokens = self.prompt_tokens
            self.reservation.settle(context.prompt_tokens + context.completion_tokens)


def begin_call(
    request: Request,
    model: LanguageModel,
    operation: str,
    params: Callable[[], Mapping[str, str]],
    *,
    streams: bool = False,
    prompt_tokens: int,
    answer_tokens: int = 0,
) -> ModelCall:
    """Admits a request. Do it last before the call, so that a wrong request takes no budget.

    Args:
        request: The HTTP request.
        model: The model that it uses.
        operation: What it does; see `RequestContext.operation`.
        params: See `ModelCall.params`.
        streams: Whether the answer is streamed.
        prompt_tokens: Tokens of the prompt, as far as they are known.
        answer_tokens: Most tokens of the answers; 0 if the request does not limit them. The model's
            context does, but reserving all of it would shut out callers with small budgets.

    Raises:
        ApiError: The caller's budget is used up.
    """
    context = context_of(request)
    context.operation = operation
    context.streams = streams
    reservation = context.caller.reserve(prompt_tokens + answer_tokens)
    return ModelCall(request, context, model, reservation, params, prompt_tokens)


async def begun(stream: Any) -> Any:
    """Waits until the server begins to answer, and returns the stream.

    gRPC does this before the first read as well. But there it goes on to read even if the call was
    cancelled meanwhile, and loses memory by that (grpc/grpc#43360).
    """
    await stream.wait_for_connection()
    return stream


def find_model(request: Request, name: str) -> LanguageModel:
    """Finds the model that a request names, and checks that the caller may use it.

    Raises:
        ApiError: There is none, or the caller may not.
    """
    context = context_of(request)
    model = parts_of(request).backends.language_model(name, context.caller.may_see)
    context.caller.check_model(model.name)
    context.model = model.name
    return model


def prompt_estimate(characters: int) -> int:
    """Reckons how many tokens a text has."""
    return -(-characters // _CHARACTERS_PER_TOKEN)


def finish_reason(finish: llm_pb2.Finish, *, names_tool: bool = False) -> str:
    """Returns why an answer ended, in OpenAI's words.

    Args:
        finish: The end of the answer.
        names_tool: Whether the request names the tool to call; OpenAI then says ``stop``.

    Raises:
        ApiError: The server stopped the answer.
    """
    reason = _REASONS.get(finish.reason)
    if reason is None:
        raise aborted()
    return "stop" if names_tool and reason == "tool_calls" else reason


def aborted() -> ApiError:
    """Makes the error of an answer that its server stopped before its end."""
    return ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the model's server stopped the answer before its end",
        ErrorType.SERVER,
        "answer_aborted",
        may_retry=False,
    )


def in_stream(error: ApiError) -> dict[str, object]:
    """Writes an error that comes after a stream has begun.

    Whatever its status would have been, the request was good enough to be answered. Clients take
    other types for a fault of theirs.
    """
    told = openai_error(error)
    body = dict(told["error"])  # type: ignore[call-overload]
    return {"error": {**body, "type": ErrorType.SERVER, "param": None}}


def usage_of(usages: Sequence[llm_pb2.Usage], prompts: Sequence[llm_pb2.Usage]) -> dict[str, Any]:
    """Writes the usage of a chat completion or a completion.

    Args:
        usages: The usage of each answer.
        prompts: The usage of one answer of each prompt: answers share their prompt.
    """
    prompt = sum(each.prompt_tokens for each in prompts)
    completion = sum(each.completion_tokens for each in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(each.cached_prompt_tokens for each in prompts)
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(each.reasoning_tokens for each in usages)
        },
    }


def new_id(prefix: str) -> str:
    """Makes the id of an object in a reply."""
    return f"{prefix}{uuid.uuid4().hex}"
