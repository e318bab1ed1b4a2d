"""Runs a generating call from its prompt to its last token, however it ends.

A call holds a slot, turns its prompt into token ids, runs on the engine and writes what comes. It
writes with `context.write` rather than yielding, since only the writer can tell a client that does
not read from an engine that has nothing to say: a message that stays unread past the limit ends the
call. What the engine makes meanwhile is merged into the next message, at most a context long, so
that memory stays bounded.

Whatever ends a call (its last token, the client, the deadline, the engine's death), leaving the
loop closes the engine's iterator, which frees the sequence before any status is sent.
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
    """What answers need while the engine runs.

    Attributes:
        engine: The loaded model.
        tokenizer: Its tokenizer.
        grammar_checker: Where constraints are tried out.
        admission: How many requests are held.
        stalled_write_limit_s: How long a client may leave a message unread.
        loaded_at_s: When it became ready, as `time.time` tells.
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
    response: type[llm_pb2.GenerateResponse] | type[llm_pb2.ChatResponse],
) -> None:
    """Answers piece by piece.

    Args:
        pipeline: The engine and what belongs to it.
        context: Of the call.
        prompt: Checked prompt.
        options: Checked options.
        received_s: When the call came, in seconds of `time.monotonic`.
        response: Type of the pieces.

    Raises:
        DeadlineExceeded: The deadline passed, or the client did not read.
        ResourceExhausted: There is no room.
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
                                # A step's first tokens are written before others' next ones.
                                await asyncio.sleep(0)
                            message = response()
                            builder.take(output, message.delta, message.finish)
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
    """Answers in one message; see `stream`."""
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
                            if builder.take(output, message.output, message.finish):
                                return message
    raise Internal("the engine gave no answer")


def _name_model(pipeline: InferencePipeline, context: ServicerContext) -> None:
    """Says which version answers, so that refusals count for it as well."""
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
    """Counts an answer when it ends, whichever way, and says so in the trailers."""
    try:
        yield
    except BaseException as error:
        builder.cut()
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
            # A timeout is still a cancellation here.
            if limits.timer.expired():
                return limits.cause
            return _CAUSES.get(code_of_cancellation(), CancelCause.CLIENT)
        case Unavailable():
            return CancelCause.ENGINE
        case _:
            return CancelCause.ERROR


def _wall_clock_s(monotonic_s: float) -> float:
    return time.time() - (time.monotonic() - monotonic_s)
