"""Runs a generating call from its prompt to its last token.

A call takes a slot of the admission for each of its answers, turns its prompt into token ids, runs
on the engine and writes the messages. It writes with `context.write` instead of yielding, because
only a writer can see that a client does not read. A call ends if a message stays unread past the
limit. Meanwhile vLLM merges the new tokens into the next message. A message is at most as long as
the context, so memory is bounded.

A call ends at its last token, with its client, at its deadline or when the engine dies. In every
case, leaving the loop closes the engine's iterator. That frees all its sequences in the engine
before the server sends a status.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc

from tidegate.chassis.calls import (
    ResponseWriter,
    ServicerContext,
    code_of_cancellation,
    deadline_of,
    report_load,
    set_trailers,
)
from tidegate.chassis.errors import Internal, InvalidArgument, Unavailable
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm import telemetry
from tidegate.serving.llm.admission import Admission
from tidegate.serving.llm.api.responses import AnswerBuilder, AnswerCollector, ResponseBuilder
from tidegate.serving.llm.api.time_limits import CallTimeLimits, StalledClientWatch
from tidegate.serving.llm.engine.vllm_engine import OutputForm, VllmEngine
from tidegate.serving.llm.preprocessing.grammar_checker import GrammarChecker
from tidegate.serving.llm.preprocessing.tokenizer import PromptTokenizer
from tidegate.serving.llm.requests.parser import ChatPrompt, Options, TextPrompt, TokenPrompt
from tidegate.serving.llm.telemetry import CancelCause

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

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
    """Streams the answers, one message for each output of the engine and answer.

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
            with (
                _admitted(pipeline, options),
                closing(StalledClientWatch(timer, limit_s)) as watch,
            ):
                prepared = await _prepare(pipeline, prompt, options, received_s, streams=True)
                builder = prepared.builder
                with _accounted(pipeline, context, builder, limits):
                    writer = ResponseWriter(context)
                    has_prompt_logprobs = options.sampling.prompt_logprobs is not None
                    async with aclosing(prepared.generate(pipeline.engine)) as outputs:
                        async for output in outputs:
                            if builder.has_begun:
                                # Calls whose first token came in the same step write first.
                                await asyncio.sleep(0)
                            for place, completion in enumerate(output.outputs):
                                message = response_type(answer=completion.index)
                                if has_prompt_logprobs and isinstance(
                                    message, llm_pb2.GenerateResponse
                                ):
                                    builder.fill_prompt_logprobs(output, message.prompt_logprobs)
                                builder.fill(output, place, message.delta, message.finish)
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
            with _admitted(pipeline, options):
                prepared = await _prepare(pipeline, prompt, options, received_s, streams=False)
                with _accounted(pipeline, context, prepared.builder, limits):
                    async with aclosing(prepared.generate(pipeline.engine)) as outputs:
                        if prepared.form.streams:
                            return await _collect(prepared.builder, outputs)
                        async for output in outputs:
                            message = llm_pb2.CompleteResponse()
                            prepared.builder.fill_prompt_logprobs(output, message.prompt_logprobs)
                            if prepared.builder.fill(output, 0, message.output, message.finish):
                                return message
    raise Internal("the engine gave no answer")


@dataclass(frozen=True, slots=True)
class _PreparedRequest:
    """A request that is ready for the engine."""

    token_ids: list[int]
    options: Options
    form: OutputForm
    builder: ResponseBuilder
    arrival_s: float

    def generate(self, engine: VllmEngine) -> "AsyncGenerator[RequestOutput, None]":
        return engine.generate(self.token_ids, self.options, self.arrival_s, self.form)


async def _prepare(
    pipeline: InferencePipeline,
    prompt: Prompt,
    options: Options,
    received_s: float,
    *,
    streams: bool,
) -> _PreparedRequest:
    engine, parsers = pipeline.engine, pipeline.engine.parsers
    plan = None
    if isinstance(prompt, ChatPrompt):
        options = parsers.constrained(prompt, options, pipeline.tokenizer.is_special)
    for constraint, at in options.constraints:
        pipeline.tokenizer.check_constraint(constraint, at)
        await pipeline.grammar_checker.check(constraint, at)
    ids = await pipeline.tokenizer.token_ids(prompt, options)
    if isinstance(prompt, ChatPrompt):
        plan = parsers.plan(prompt, ids)
    count = options.sampling.answers
    if plan is None:
        # The answer to a plain prompt has no reasoning.
        ended = True if parsers.names.reasoning else None
        form = OutputForm(streams=streams or count > 1, reasoning_ended=ended)
    else:
        # vLLM's parsers read the outputs of a stream.
        form = OutputForm(
            streams=True,
            special_tokens_as_text=plan.special_tokens_as_text,
            reasoning_ended=plan.reasoning_ended,
            reasoning_arguments=plan.reasoning_arguments,
        )
    sampling = options.sampling
    builder = ResponseBuilder(
        ids,
        sampling.logprobs,
        sampling.prompt_logprobs,
        engine.token_bytes,
        [
            AnswerBuilder(received_s, None if plan is None else plan.new_parser())
            for _ in range(count)
        ],
    )
    return _PreparedRequest(ids, options, form, builder, _wall_clock_s(received_s))


async def _collect(
    builder: ResponseBuilder, outputs: "AsyncIterator[RequestOutput]"
) -> llm_pb2.CompleteResponse:
    """Reads streamed answers to their ends, and joins each to a whole one."""
    message = llm_pb2.CompleteResponse()
    answers: list[llm_pb2.CompleteResponse | llm_pb2.Answer] = [message]
    answers += [message.further_answers.add() for _ in builder.answers[1:]]
    collectors = [AnswerCollector() for _ in answers]
    async for output in outputs:
        builder.fill_prompt_logprobs(output, message.prompt_logprobs)
        for place, completion in enumerate(output.outputs):
            delta = llm_pb2.Delta()
            builder.fill(output, place, delta, answers[completion.index].finish)
            collectors[completion.index].add(delta)
    for answer, collector in zip(answers, collectors, strict=True):
        if not answer.HasField("finish"):
            raise Internal("the engine gave no answer")
        collector.fill(answer.output)
        # The client got one message.
        answer.finish.timings.ClearField("max_inter_message")
    return message


@contextmanager
def _admitted(pipeline: InferencePipeline, options: Options) -> Iterator[None]:
    """Takes a slot for each answer."""
    answers, capacity = options.sampling.answers, pipeline.admission.capacity
    if answers > capacity:
        raise InvalidArgument.of(
            f"{options.at}.sampling.answers",
            f"must be at most {capacity}, the requests that this server holds",
        )
    with pipeline.admission.slots(answers):
        yield


def _name_model(pipeline: InferencePipeline, context: ServicerContext) -> None:
    """Sets the trailers that name the model version, so that refused calls count for it too."""
    facts = pipeline.engine.facts
    trailers = {"tidegate-model": facts.name, "tidegate-model-version": facts.version}
    set_trailers(context, trailers)


@contextmanager
def _accounted(
    pipeline: InferencePipeline,
    context: ServicerContext,
    builder: ResponseBuilder,
    limits: CallTimeLimits,
) -> Iterator[None]:
    """Records answers in metrics, span and trailers when they end, for whatever reason."""
    try:
        yield
    except BaseException as error:
        builder.record_cut_off()
        ended = [each for each in builder.answers if each.has_ended]
        # A call that fails at its last message has cut an answer too.
        cut = (len(builder.answers) - len(ended)) or 1
        telemetry.CANCELLED.labels(_cause(error, limits)).inc(cut)
        for each in ended[: len(builder.answers) - cut]:
            telemetry.FINISHED.labels(each.finish_reason).inc()
        raise
    else:
        for each in builder.answers:
            telemetry.FINISHED.labels(each.finish_reason).inc()
    finally:
        telemetry.TOKENS.labels("prompt").inc(len(builder.prompt))
        telemetry.TOKENS.labels("completion").inc(builder.completion_tokens)
        telemetry.trace_response(
            len(builder.prompt),
            builder.completion_tokens,
            finish_reasons=builder.finish_reasons,
            time_to_first_token_s=builder.time_to_first_token_s,
            queue_s=builder.queue_s,
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
