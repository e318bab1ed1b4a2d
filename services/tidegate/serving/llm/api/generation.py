"""Runs a generating call from its prompt to its last token.

A call takes a slot of the admission, turns its prompt into token ids, runs on the engine and writes
the messages. It writes with `context.write` instead of yielding, because only a writer can see that
a client does not read. A call ends if a message stays unread past the limit. Meanwhile vLLM merges
the new tokens into the next message. A message is at most as long as the context, so memory is
bounded.

A call ends at its last token, with its client, at its deadline or when the engine dies. In every
case, leaving the loop closes the engine's iterator. That frees the sequence in the engine before
the server sends a status.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc

from tidegate.chassis.calls import (
    ResponseWriter,
    ServicerContext,
    code_of_cancellation,
    deadline_of,
    report_load,
    set_trailers,
)
from tidegate.chassis.errors import Internal, Unavailable
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm import telemetry
from tidegate.serving.llm.admission import Admission
from tidegate.serving.llm.api.responses import ResponseBuilder
from tidegate.serving.llm.api.time_limits import CallTimeLimits, StalledClientWatch
from tidegate.serving.llm.engine.vllm_engine import VllmEngine
from tidegate.serving.llm.preprocessing.grammar_checker import GrammarChecker
from tidegate.serving.llm.preprocessing.tokenizer import PromptTokenizer
from tidegate.serving.llm.requests.parser import ChatPrompt, Options, TextPrompt, TokenPrompt
from tidegate.serving.llm.telemetry import CancelCause

__all__ = ["InferencePipeline", "Prompt", "complete", "stream"]

Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt

_CAUSES: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: CancelCause.DEADLINE,
    grpc.StatusCode.UNAVAILABLE: CancelCause.DRAIN,
}


@dataclass(frozen=True, slots=True)
class InferencePipeline:
    """The parts of a loaded model that a request passes.

    Attributes:
        engine: The engine with the loaded model.
        tokenizer: The model's tokenizer.
        grammar_checker: Compiles constraints before the engine does.
        admission: Limits the requests that the server holds.
        stalled_write_limit_s: How long a client may leave a message unread.
        loaded_at_s: When the model became ready, in seconds of `time.time`.
    """

    engine: VllmEngine
    tokenizer: PromptTokenizer
    grammar_checker: GrammarChecker
    admission: Admission
    stalled_write_limit_s: float
    loaded_at_s: float


async def stream(
    pipeline: InferencePipeline,
    context: ServicerContext,
    prompt: Prompt,
    options: Options,
    received_s: float,
    response_type: type[llm_pb2.GenerateResponse] | type[llm_pb2.ChatResponse],
) -> None:
    """Streams an answer, one message for each output of the engine.

    Args:
        pipeline: The loaded model.
        context: The context of the call.
        prompt: The checked prompt.
        options: The checked options.
        received_s: Time of the call, in seconds of `time.monotonic`.
        response_type: Type of the messages.

    Raises:
        DeadlineExceeded: The deadline passed, or the client did not read.
        ResourceExhausted: The queue is full.
        InvalidArgument: The prompt is too long, or the constraint cannot be used.
        Unavailable: The engine died.
    """
    limit_s = pipeline.stalled_write_limit_s
    limits = CallTimeLimits(deadline_of(context), limit_s)
    with limits.explaining_timeout():
        async with limits.timer as timer:
            _name_model(pipeline, context)
            with pipeline.admission.slot(), closing(StalledClientWatch(timer, limit_s)) as watch:
                ids = await _token_ids(pipeline, prompt, options)
                builder = ResponseBuilder(
                    received_s, len(ids), options.sampling.logprobs, pipeline.engine.token_bytes
                )
                with _accounted(pipeline, context, builder, limits):
                    outputs = pipeline.engine.generate(
                        ids, options, _wall_clock_s(received_s), streams=True
                    )
                    writer = ResponseWriter(context)
                    async with aclosing(outputs):
                        async for output in outputs:
                            if builder.completion_tokens:
                                # Calls whose first token came in the same step write first.
                                await asyncio.sleep(0)
                            message = response_type()
                            builder.fill(output, message.delta, message.finish)
                            watch.writing()
                            await writer.write(message)
                            watch.written()


async def complete(
    pipeline: InferencePipeline,
    context: ServicerContext,
    prompt: Prompt,
    options: Options,
    received_s: float,
) -> llm_pb2.CompleteResponse:
    """Returns a whole answer in one message; see `stream`."""
    limits = CallTimeLimits(deadline_of(context), pipeline.stalled_write_limit_s)
    with limits.explaining_timeout():
        async with limits.timer:
            _name_model(pipeline, context)
            with pipeline.admission.slot():
                ids = await _token_ids(pipeline, prompt, options)
                builder = ResponseBuilder(
                    received_s, len(ids), options.sampling.logprobs, pipeline.engine.token_bytes
                )
                with _accounted(pipeline, context, builder, limits):
                    outputs = pipeline.engine.generate(
                        ids, options, _wall_clock_s(received_s), streams=False
                    )
                    async with aclosing(outputs):
                        async for output in outputs:
                            message = llm_pb2.CompleteResponse()
                            if builder.fill(output, message.output, message.finish):
                                return message
    raise Internal("the engine gave no answer")


def _name_model(pipeline: InferencePipeline, context: ServicerContext) -> None:
    """Sets the trailers that name the model version, so that refused calls count for it too."""
    facts = pipeline.engine.facts
    trailers = {"tidegate-model": facts.name, "tidegate-model-version": facts.version}
    set_trailers(context, trailers)


async def _token_ids(pipeline: InferencePipeline, prompt: Prompt, options: Options) -> list[int]:
    constraint = options.sampling.constraint
    if constraint is not None:
        pipeline.tokenizer.check_constraint(constraint, f"{options.at}.sampling.constraint")
        await pipeline.grammar_checker.check(constraint, f"{options.at}.sampling.constraint")
    return await pipeline.tokenizer.token_ids(prompt, options)


@contextmanager
def _accounted(
    pipeline: InferencePipeline,
    context: ServicerContext,
    builder: ResponseBuilder,
    limits: CallTimeLimits,
) -> Iterator[None]:
    """Records an answer in metrics, span and trailers when it ends, for whatever reason."""
    try:
        yield
    except BaseException as error:
        builder.record_cut_off()
        telemetry.CANCELLED.labels(_cause(error, limits)).inc()
        raise
    else:
        telemetry.FINISHED.labels(builder.finish_reason).inc()
    finally:
        telemetry.TOKENS.labels("prompt").inc(builder.prompt_tokens)
        telemetry.TOKENS.labels("completion").inc(builder.completion_tokens)
        telemetry.trace_response(
            builder.prompt_tokens,
            builder.completion_tokens,
            finish_reason=builder.finish_reason,
            time_to_first_token_s=builder.time_to_first_token_s,
        )
        set_trailers(context, builder.trailers())
        report_load(context, pipeline.admission.load())


def _cause(error: BaseException, limits: CallTimeLimits) -> CancelCause:
    match error:
        case asyncio.CancelledError():
            # `asyncio.timeout` turns its cancellation into a TimeoutError only later.
            if limits.timer.expired():
                return limits.cause
            return _CAUSES.get(code_of_cancellation(), CancelCause.CLIENT)
        case Unavailable():
            return CancelCause.ENGINE
        case _:
            return CancelCause.ERROR


def _wall_clock_s(monotonic_s: float) -> float:
    return time.time() - (time.monotonic() - monotonic_s)
