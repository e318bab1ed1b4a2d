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
from tidegate.chassis.errors import DeadlineExceeded, Internal, Unavailable
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm import telemetry
from tidegate.serving.llm.admission import Admission
from tidegate.serving.llm.answer import Answer
from tidegate.serving.llm.engine import Engine
from tidegate.serving.llm.grammar import GrammarGate
from tidegate.serving.llm.prompts import Prompts
from tidegate.serving.llm.requests import ChatPrompt, Options, TextPrompt, TokenPrompt
from tidegate.serving.llm.telemetry import CancelCause
from tidegate.serving.llm.unread import UnreadWatch

__all__ = ["Prompt", "Serving", "complete", "stream"]

Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt

_CAUSES: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: CancelCause.DEADLINE,
    grpc.StatusCode.UNAVAILABLE: CancelCause.DRAIN,
}


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers need while the engine runs.

    Attributes:
        engine: The loaded model.
        prompts: Its tokenizer.
        gate: Where constraints are tried out.
        admission: How many requests are held.
        stalled_write_limit_s: How long a client may leave a message unread.
        loaded_at_s: When it became ready, as `time.time` tells.
    """

    engine: Engine
    prompts: Prompts
    gate: GrammarGate
    admission: Admission
    stalled_write_limit_s: float
    loaded_at_s: float


async def stream(
    serving: Serving,
    context: ServicerContext,
    prompt: Prompt,
    options: Options,
    received_s: float,
    response: type[llm_pb2.GenerateResponse] | type[llm_pb2.ChatResponse],
) -> None:
    """Answers piece by piece.

    Args:
        serving: The engine and what belongs to it.
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
    limit_s = serving.stalled_write_limit_s
    clock = _Clock(deadline_of(context), limit_s)
    with clock.telling():
        async with clock.timer as timer:
            _name_model(serving, context)
            with serving.admission.slot(), closing(UnreadWatch(timer, limit_s)) as watch:
                ids = await _token_ids(serving, prompt, options)
                answer = Answer(
                    received_s, len(ids), options.sampling.logprobs, serving.engine.token_bytes
                )
                with _accounted(serving, context, answer, clock):
                    outputs = serving.engine.generate(
                        ids, options, _wall_clock_s(received_s), streams=True
                    )
                    writer = ResponseWriter(context)
                    async with aclosing(outputs):
                        async for output in outputs:
                            if answer.completion_tokens:
                                # A step's first tokens are written before others' next ones.
                                await asyncio.sleep(0)
                            message = response()
                            answer.take(output, message.delta, message.finish)
                            watch.writing()
                            await writer.write(message)
                            watch.written()


async def complete(
    serving: Serving,
    context: ServicerContext,
    prompt: Prompt,
    options: Options,
    received_s: float,
) -> llm_pb2.CompleteResponse:
    """Answers in one message; see `stream`."""
    clock = _Clock(deadline_of(context), serving.stalled_write_limit_s)
    with clock.telling():
        async with clock.timer:
            _name_model(serving, context)
            with serving.admission.slot():
                ids = await _token_ids(serving, prompt, options)
                answer = Answer(
                    received_s, len(ids), options.sampling.logprobs, serving.engine.token_bytes
                )
                with _accounted(serving, context, answer, clock):
                    outputs = serving.engine.generate(
                        ids, options, _wall_clock_s(received_s), streams=False
                    )
                    async with aclosing(outputs):
                        async for output in outputs:
                            message = llm_pb2.CompleteResponse()
                            if answer.take(output, message.output, message.finish):
                                return message
    raise Internal("the engine gave no answer")


def _name_model(serving: Serving, context: ServicerContext) -> None:
    """Says which version answers, so that refusals count for it as well."""
    facts = serving.engine.facts
    trailers = {"tidegate-model": facts.name, "tidegate-model-version": facts.version}
    set_trailers(context, trailers)


async def _token_ids(serving: Serving, prompt: Prompt, options: Options) -> list[int]:
    constraint = options.sampling.constraint
    if constraint is not None:
        serving.prompts.check_constraint(constraint, f"{options.at}.sampling.constraint")
        await serving.gate.check(constraint, f"{options.at}.sampling.constraint")
    return await serving.prompts.token_ids(prompt, options)


class _Clock:
    """What ends a call in time: its deadline, or the watch for a client that does not read.

    Args:
        deadline_s: Of the call, in seconds of `time.monotonic`; None for none.
        limit_s: How long a client may leave a message unread.

    Attributes:
        timer: Around the call; the watch reschedules it to end the call.
    """

    def __init__(self, deadline_s: float | None, limit_s: float) -> None:
        self._deadline_s = deadline_s
        self._limit_s = limit_s
        self.timer = asyncio.timeout_at(deadline_s)

    @property
    def cause(self) -> CancelCause:
        """Why it ended the call, once it has."""
        at_deadline = self.timer.when() == self._deadline_s
        return CancelCause.DEADLINE if at_deadline else CancelCause.STALLED

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the client why it ended the call."""
        try:
            yield
        except TimeoutError as error:
            if self.cause is CancelCause.DEADLINE:
                words = "the deadline passed; what ran for it was stopped"
                raise DeadlineExceeded(words) from error
            raise DeadlineExceeded(
                f"the client left a message unread for {self._limit_s:g} s",
                reason="CLIENT_DOES_NOT_READ",
            ) from error


@contextmanager
def _accounted(
    serving: Serving, context: ServicerContext, answer: Answer, clock: _Clock
) -> Iterator[None]:
    """Counts an answer when it ends, whichever way, and says so in the trailers."""
    try:
        yield
    except BaseException as error:
        answer.cut()
        telemetry.CANCELLED.labels(_cause(error, clock)).inc()
        raise
    else:
        telemetry.FINISHED.labels(answer.finish_reason).inc()
    finally:
        telemetry.TOKENS.labels("prompt").inc(answer.prompt_tokens)
        telemetry.TOKENS.labels("completion").inc(answer.completion_tokens)
        telemetry.trace_response(
            answer.prompt_tokens,
            answer.completion_tokens,
            finish_reason=answer.finish_reason,
            time_to_first_token_s=answer.time_to_first_token_s,
        )
        set_trailers(context, answer.trailers())
        report_load(context, serving.admission.load())


def _cause(error: BaseException, clock: _Clock) -> CancelCause:
    match error:
        case asyncio.CancelledError():
            # A timeout is still a cancellation here.
            if clock.timer.expired():
                return clock.cause
            return _CAUSES.get(code_of_cancellation(), CancelCause.CLIENT)
        case Unavailable():
            return CancelCause.ENGINE
        case _:
            return CancelCause.ERROR


def _wall_clock_s(monotonic_s: float) -> float:
    return time.time() - (time.monotonic() - monotonic_s)
