"""Builds response messages from the engine's outputs, and counts the tokens and times of answers.

In a stream, each engine step makes one message for each answer. If the client reads more slowly
than the engine generates, vLLM merges steps, and a message holds several tokens. The counts become
the `Finish` of the last message, the trailers, the metrics and the span's attributes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf.duration_pb2 import Duration

from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm import telemetry
from tidegate.serving.llm.postprocessing.answer_parser import AnswerParser

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput, RequestOutput

    _Positions: TypeAlias = RepeatedCompositeFieldContainer[llm_pb2.PromptLogprobs]

__all__ = ["AnswerBuilder", "AnswerCollector", "ResponseBuilder"]

_ABORT: Final = "abort"
_TOOL_CALLS: Final = "tool_calls"
_REASONS: Final = {
    "stop": llm_pb2.FINISH_REASON_STOP,
    "length": llm_pb2.FINISH_REASON_LENGTH,
    _ABORT: llm_pb2.FINISH_REASON_ABORT,
    _TOOL_CALLS: llm_pb2.FINISH_REASON_TOOL_CALLS,
}


@dataclass(slots=True)
class AnswerBuilder:
    """Builds the messages of one answer.

    Attributes:
        received_s: Time of the request, in seconds of `time.monotonic`.
        parser: Separates reasoning and calls from the text; None if there is only text.
        completion_tokens: Tokens of the answer so far.
        characters: Characters of the answer's text so far, with its reasoning and calls.
        finish_reason: vLLM's finish reason or ``tool_calls``; "abort" until the answer has ended.
        has_ended: Whether the answer has ended.
        first_token_s: Time from the request to the first token; None before the first token.
        queue_s: Time in the engine's queue; None until the engine tells it.
    """

    received_s: float
    parser: AnswerParser | None = None
    completion_tokens: int = 0
    characters: int = 0
    finish_reason: str = _ABORT
    has_ended: bool = False
    first_token_s: float | None = None
    queue_s: float | None = None
    _first_tokens: int = 0
    _first_message_s: float | None = None
    _last_message_s: float | None = None
    _longest_gap_s: float | None = None

    def fill_delta(self, completion: "CompletionOutput", delta: llm_pb2.Delta) -> None:
        """Fills the text and the tokens of a message with an output of the engine."""
        now_s = time.monotonic()
        if self._last_message_s is not None:
            gap_s = now_s - self._last_message_s
            self._longest_gap_s = max(self._longest_gap_s or 0.0, gap_s)
        self._last_message_s = now_s
        if completion.token_ids:
            if self.first_token_s is None:
                self.first_token_s = now_s - self.received_s
                self._first_message_s, self._first_tokens = now_s, len(completion.token_ids)
            self.completion_tokens += len(completion.token_ids)
            delta.token_ids.extend(completion.token_ids)
        self.characters += len(completion.text)
        if self.parser is not None:
            self._fill_parsed(self.parser, completion, delta)
        elif completion.text:
            delta.text = completion.text
        if completion.finish_reason is not None:
            self.has_ended = True
            self.finish_reason = completion.finish_reason
            if self.parser is not None and self.parser.ends_with_calls(
                completion.finish_reason, completion.stop_reason
            ):
                self.finish_reason = _TOOL_CALLS

    def fill_finish(
        self,
        completion: "CompletionOutput",
        finish: llm_pb2.Finish,
        usage: llm_pb2.Usage,
        stats: Any,
    ) -> None:
        """Fills how the answer ended.

        Args:
            completion: The last output of the answer.
            finish: The message to fill.
            usage: The tokens of the prompt.
            stats: vLLM's times of this answer; None if they are not known.
        """
        finish.reason = _REASONS.get(self.finish_reason, llm_pb2.FINISH_REASON_STOP)
        if isinstance(completion.stop_reason, str):
            finish.stop_string = completion.stop_reason
        elif completion.stop_reason is not None:
            finish.stop_token_id = completion.stop_reason
        finish.usage.CopyFrom(usage)
        finish.usage.completion_tokens = self.completion_tokens
        if self.parser is not None:
            finish.usage.reasoning_tokens = self.parser.reasoning_tokens()
        timings = finish.timings
        _set(timings.total, time.monotonic() - self.received_s)
        if stats is not None:
            if stats.scheduled_ts:
                self.queue_s = max(stats.scheduled_ts - stats.queued_ts, 0.0)
                _set(timings.queue, self.queue_s)
            if self.first_token_s is not None and self._longest_gap_s is None:
                # The whole answer came at once; only the engine knows the time of its first token.
                self.first_token_s = min(stats.first_token_latency, self.first_token_s)
        mean_s = self._mean_inter_token_s(stats)
        if mean_s is not None:
            _set(timings.mean_inter_token, mean_s)
            telemetry.INTER_TOKEN.observe(mean_s)
        if self.first_token_s is not None:
            _set(timings.time_to_first_token, self.first_token_s)
        if self._longest_gap_s is not None:
            _set(timings.max_inter_message, self._longest_gap_s)

    def record_cut_off(self) -> None:
        """Records the inter-token time of an answer that was cut off before its end."""
        if not self.has_ended and (mean_s := self._mean_inter_message_s()) is not None:
            telemetry.INTER_TOKEN.observe(mean_s)

    def _fill_parsed(
        self, parser: AnswerParser, completion: "CompletionOutput", delta: llm_pb2.Delta
    ) -> None:
        is_last = completion.finish_reason is not None
        parsed = parser.parse(completion.text, completion.token_ids, is_last=is_last)
        if parsed.text:
            delta.text = parsed.text
        if parsed.reasoning:
            delta.reasoning = parsed.reasoning
        for part in parsed.calls:
            delta.tool_calls.add(
                index=part.index, id=part.id, name=part.name, arguments=part.arguments
            )

    def _mean_inter_token_s(self, stats: Any) -> float | None:
        if self.completion_tokens < 2:
            return None
        if stats is None:
            return self._mean_inter_message_s()
        spent_s: float = max(stats.last_token_ts - stats.first_token_ts, 0.0)
        return spent_s / (self.completion_tokens - 1)

    def _mean_inter_message_s(self) -> float | None:
        later_tokens = self.completion_tokens - self._first_tokens
        if not later_tokens or self._first_message_s is None or self._last_message_s is None:
            return None
        return (self._last_message_s - self._first_message_s) / later_tokens


@dataclass(slots=True)
class ResponseBuilder:
    """Builds the messages of a request's answers.

    Attributes:
        prompt: Token ids of the prompt.
        top_logprobs: Likeliest tokens to return at each position; None for no log probabilities.
        top_prompt_logprobs: The same for each position of the prompt.
        token_bytes: Returns the bytes of a token.
        answers: The builder of each answer.
    """

    prompt: list[int]
    top_logprobs: int | None
    top_prompt_logprobs: int | None
    token_bytes: Callable[[int], bytes]
    answers: list[AnswerBuilder] = field(default_factory=list)
    _has_first_token: bool = False
    _has_queue_time: bool = False
    _has_prompt_logprobs: bool = False

    @property
    def has_begun(self) -> bool:
        """Whether an answer has a token."""
        return self._has_first_token

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(each.completion_tokens for each in self.answers)

    @property
    def time_to_first_token_s(self) -> float | None:
        """Time from the request to the first token of any answer; None before."""
        times = [each.first_token_s for each in self.answers if each.first_token_s is not None]
        return min(times, default=None)

    @property
    def queue_s(self) -> float | None:
        """Time of the first answer in the engine's queue; None until the engine tells one."""
        return next((each.queue_s for each in self.answers if each.queue_s is not None), None)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The finish reason of each answer."""
        return tuple(each.finish_reason for each in self.answers)

    def fill(
        self,
        output: "RequestOutput",
        place: int,
        delta: llm_pb2.Delta,
        finish: llm_pb2.Finish,
    ) -> bool:
        """Fills a message with an output of the engine.

        Args:
            output: The new output.
            place: Which of its parts to take; each belongs to another answer.
            delta: The delta to fill.
            finish: The finish to fill if the answer has ended.

        Returns:
            Whether the answer has ended.
        """
        completion = output.outputs[place]
        answer = self.answers[completion.index]
        answer.fill_delta(completion, delta)
        if self.top_logprobs is not None and completion.logprobs:
            for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True):
                if position is not None:
                    self._fill_logprobs(delta.logprobs.add(), token_id, position, self.top_logprobs)
        if answer.has_ended:
            usage = llm_pb2.Usage(
                prompt_tokens=len(self.prompt),
                cached_prompt_tokens=max(output.num_cached_tokens or 0, 0),
            )
            # vLLM keeps the times of only one answer when it merges outputs.
            answer.fill_finish(completion, finish, usage, output.metrics if place == 0 else None)
            if not self._has_queue_time and answer.queue_s is not None:
                self._has_queue_time = True
                telemetry.QUEUE.observe(answer.queue_s)
        if not self._has_first_token and answer.first_token_s is not None:
            self._has_first_token = True
            telemetry.TIME_TO_FIRST_TOKEN.observe(answer.first_token_s)
        return answer.has_ended

    def fill_prompt_logprobs(self, output: "RequestOutput", positions: "_Positions") -> None:
        """Fills the log probabilities of the prompt with the first output that has them."""
        if (
            self.top_prompt_logprobs is None
            or self._has_prompt_logprobs
            or not output.prompt_logprobs
        ):
            return
        self._has_prompt_logprobs = True
        for token_id, position in zip(self.prompt, output.prompt_logprobs, strict=True):
            message = positions.add()
            if position is not None:
                self._fill_logprobs(message.logprobs, token_id, position, self.top_prompt_logprobs)

    def record_cut_off(self) -> None:
        """Records the inter-token times of answers that were cut off before their end."""
        for each in self.answers:
            each.record_cut_off()

    def trailers(self) -> dict[str, str]:
        """Returns the trailers that the mesh's access log reads; they count all answers together.

        The characters tell an empty answer: the token that ends an answer is one of its tokens.
        Several answers have the finish of the worst one: cut off, then truncated.
        """
        reasons = set(self.finish_reasons)
        order = (_ABORT, "length", _TOOL_CALLS, "stop")
        trailers = {
            "tidegate-tokens-in": str(len(self.prompt)),
            "tidegate-tokens-out": str(self.completion_tokens),
            "tidegate-chars-out": str(sum(each.characters for each in self.answers)),
            "tidegate-finish": next((each for each in order if each in reasons), min(reasons)),
        }
        first_token_s = self.time_to_first_token_s
        if first_token_s is not None:
            trailers["tidegate-ttft-ms"] = f"{first_token_s * 1000:.3f}"
        if self.queue_s is not None:
            trailers["tidegate-queue-ms"] = f"{self.queue_s * 1000:.3f}"
        return trailers

    def _fill_logprobs(
        self, message: llm_pb2.Logprobs, token_id: int, position: "dict[int, Logprob]", top: int
    ) -> None:
        self._fill_logprob(message.chosen, token_id, position[token_id])
        # vLLM returns the likeliest tokens, and also the chosen one if it is not among them.
        for each, logprob in sorted(position.items(), key=_rank)[:top]:
            if math.isfinite(logprob.logprob):
                self._fill_logprob(message.top.add(), each, logprob)

    def _fill_logprob(
        self, message: llm_pb2.TokenLogprob, token_id: int, logprob: "Logprob"
    ) -> None:
        data = self.token_bytes(token_id)
        message.token_id = token_id
        message.token = data.decode(errors="replace")
        message.token_bytes = data
        message.logprob = logprob.logprob
        message.rank = logprob.rank or 0


class AnswerCollector:
    """Joins the deltas of an answer to a whole one."""

    def __init__(self) -> None:
        self._rest = llm_pb2.Delta()
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []

    def add(self, delta: llm_pb2.Delta) -> None:
        """Adds the next delta."""
        self._texts.append(delta.text)
        self._reasoning.append(delta.reasoning)
        for call in delta.tool_calls:
            while len(self._calls) <= call.index:
                self._calls.append((call.id, call.name, []))
            self._calls[call.index][2].append(call.arguments)
        self._rest.token_ids.extend(delta.token_ids)
        self._rest.logprobs.extend(delta.logprobs)

    def fill(self, output: llm_pb2.Delta) -> None:
        """Fills the whole answer."""
        output.CopyFrom(self._rest)
        output.text = "".join(self._texts)
        output.reasoning = "".join(self._reasoning)
        for index, (call_id, name, arguments) in enumerate(self._calls):
            output.tool_calls.add(index=index, id=call_id, name=name, arguments="".join(arguments))


def _set(duration: Duration, seconds: float) -> None:
    duration.FromNanoseconds(round(seconds * 1e9))


def _rank(item: "tuple[int, Any]") -> int:
    rank: int = item[1].rank
    return rank
