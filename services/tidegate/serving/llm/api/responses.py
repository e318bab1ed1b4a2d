"""Builds response messages from the engine's outputs, and counts the tokens and times of an answer.

In a stream, each engine step makes one message. If the client reads more slowly than the engine
generates, vLLM merges steps, and a message holds several tokens. The counts become the `Finish` of
the last message, the trailers, the metrics and the span's attributes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.duration_pb2 import Duration

from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm import telemetry

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import RequestOutput

__all__ = ["ResponseBuilder"]

_REASONS: Final = {
    "stop": llm_pb2.FINISH_REASON_STOP,
    "length": llm_pb2.FINISH_REASON_LENGTH,
    "abort": llm_pb2.FINISH_REASON_ABORT,
}


@dataclass(slots=True)
class ResponseBuilder:
    """Builds the messages of one answer.

    Attributes:
        received_s: Time of the request, in seconds of `time.monotonic`.
        prompt_tokens: Tokens of the prompt.
        top_logprobs: Likeliest tokens to return at each position; None for no log probabilities.
        token_bytes: Returns the bytes of a token.
        completion_tokens: Tokens of the answer so far.
        characters: Characters of the answer's text so far.
        finish_reason: vLLM's finish reason; "abort" until the answer has ended.
    """

    received_s: float
    prompt_tokens: int
    top_logprobs: int | None
    token_bytes: Callable[[int], bytes]
    completion_tokens: int = 0
    characters: int = 0
    finish_reason: str = "abort"
    _first_token_s: float | None = None
    _first_tokens: int = 0
    _first_message_s: float | None = None
    _last_message_s: float | None = None
    _longest_gap_s: float | None = None
    _queue_s: float | None = None

    @property
    def time_to_first_token_s(self) -> float | None:
        """Time from the request to the first token; None before the first token."""
        return self._first_token_s

    def fill(
        self, output: "RequestOutput", delta: llm_pb2.Delta, finish: llm_pb2.Finish | None = None
    ) -> bool:
        """Fills a message with an output of the engine.

        Args:
            output: The new output.
            delta: The delta to fill.
            finish: The finish to fill if the answer has ended.

        Returns:
            Whether the answer has ended.
        """
        completion = output.outputs[0]
        now_s = time.monotonic()
        is_first = bool(completion.token_ids) and self._first_token_s is None
        if self._last_message_s is not None:
            gap_s = now_s - self._last_message_s
            self._longest_gap_s = max(self._longest_gap_s or 0.0, gap_s)
        self._last_message_s = now_s
        if completion.token_ids:
            if is_first:
                self._first_token_s = now_s - self.received_s
                self._first_message_s, self._first_tokens = now_s, len(completion.token_ids)
            self.completion_tokens += len(completion.token_ids)
            delta.token_ids.extend(completion.token_ids)
        if completion.text:
            delta.text = completion.text
            self.characters += len(completion.text)
        if self.top_logprobs is not None and completion.logprobs:
            for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True):
                if position is not None:
                    self._fill_logprobs(delta.logprobs.add(), token_id, position, self.top_logprobs)
        if output.finished:
            self.finish_reason = completion.finish_reason or "abort"
            if finish is not None:
                self._fill_finish(output, finish, now_s)
        if is_first and self._first_token_s is not None:
            telemetry.TIME_TO_FIRST_TOKEN.observe(self._first_token_s)
        return bool(output.finished)

    def record_cut_off(self) -> None:
        """Records the inter-token time of an answer that was cut off before its end."""
        later_tokens = self.completion_tokens - self._first_tokens
        if self.finish_reason != "abort" or not later_tokens:
            return
        if self._first_message_s is not None and self._last_message_s is not None:
            spent_s = self._last_message_s - self._first_message_s
            telemetry.INTER_TOKEN.observe(spent_s / later_tokens)

    def trailers(self) -> dict[str, str]:
        """Returns the trailers that the mesh's access log reads.

        The characters tell an empty answer: the token that ends an answer is one of its tokens.
        """
        trailers = {
            "tidegate-tokens-in": str(self.prompt_tokens),
            "tidegate-tokens-out": str(self.completion_tokens),
            "tidegate-chars-out": str(self.characters),
            "tidegate-finish": self.finish_reason,
        }
        if self._first_token_s is not None:
            trailers["tidegate-ttft-ms"] = f"{self._first_token_s * 1000:.3f}"
        if self._queue_s is not None:
            trailers["tidegate-queue-ms"] = f"{self._queue_s * 1000:.3f}"
        return trailers

    def _fill_finish(self, output: "RequestOutput", finish: llm_pb2.Finish, now_s: float) -> None:
        completion, stats = output.outputs[0], output.metrics
        finish.reason = _REASONS.get(self.finish_reason, llm_pb2.FINISH_REASON_STOP)
        if isinstance(completion.stop_reason, str):
            finish.stop_string = completion.stop_reason
        elif completion.stop_reason is not None:
            finish.stop_token_id = completion.stop_reason
        finish.usage.prompt_tokens = self.prompt_tokens
        finish.usage.completion_tokens = self.completion_tokens
        finish.usage.cached_prompt_tokens = max(output.num_cached_tokens or 0, 0)
        timings = finish.timings
        _set(timings.total, now_s - self.received_s)
        if stats is not None:
            if stats.scheduled_ts:
                self._queue_s = max(stats.scheduled_ts - stats.queued_ts, 0.0)
                _set(timings.queue, self._queue_s)
                telemetry.QUEUE.observe(self._queue_s)
            if self._first_token_s is not None and self._longest_gap_s is None:
                # The whole answer came at once; only the engine knows the time of its first token.
                self._first_token_s = min(stats.first_token_latency, self._first_token_s)
            if self.completion_tokens > 1:
                spent_s = max(stats.last_token_ts - stats.first_token_ts, 0.0)
                mean_s = spent_s / (self.completion_tokens - 1)
                _set(timings.mean_inter_token, mean_s)
                telemetry.INTER_TOKEN.observe(mean_s)
        if self._first_token_s is not None:
            _set(timings.time_to_first_token, self._first_token_s)
        if self._longest_gap_s is not None:
            _set(timings.max_inter_message, self._longest_gap_s)

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


def _set(duration: Duration, seconds: float) -> None:
    duration.FromNanoseconds(round(seconds * 1e9))


def _rank(item: "tuple[int, Any]") -> int:
    rank: int = item[1].rank
    return rank
