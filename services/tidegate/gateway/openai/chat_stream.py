"""Chat completions as a stream: chunks from a template.

Of a chunk only the text differs from the one before, so everything around it is encoded once for
each answer.
"""

from collections.abc import AsyncGenerator
from typing import Any

from tidegate.gateway.openai.calls import (
    ModelCall,
    aborted,
    begun,
    finish_reason,
    new_id,
    usage_of,
)
from tidegate.gateway.openai.encoding import chat_logprobs, encode, encode_line
from tidegate.gateway.openai.tools import named_tool
from tidegate.llm.v1 import llm_pb2

__all__ = ["chat_frames"]


async def chat_frames(
    call: ModelCall, chat: llm_pb2.ChatRequest, *, wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yields the frames of a chat completion.

    Args:
        call: The admitted call.
        chat: Its message.
        wants_usage: Whether the stream ends with the tokens used.

    Raises:
        ApiError: The call failed, or the server stopped an answer before its end.
    """
    sampling = chat.options.sampling
    answers = sampling.answers or 1
    chunks = _Chunks(call, answers, wants_usage=wants_usage)
    names_tool = named_tool(chat)
    with_logprobs = sampling.HasField("logprobs")
    context = call.context
    usages: list[llm_pb2.Usage] = []
    reasons = [""] * answers
    frame = chunks.roles
    async with call.streamed(call.stub.Chat, [chat]) as (stream,):
        async for message in await begun(stream):
            delta, answer = message.delta, message.answer
            context.tokens(len(delta.token_ids))
            if with_logprobs and delta.logprobs:
                frame += chunks.logprobs(answer, delta)
            elif text := delta.text:
                frame += chunks.heads[answer] + encode_line(text) + chunks.tail
            if delta.reasoning:
                frame += chunks.reasoning(answer, delta.reasoning)
            if delta.tool_calls:
                frame += chunks.tool_calls(answer, delta)
            if message.HasField("finish"):
                finish = message.finish
                usages.append(finish.usage)
                reasons[answer] = finish_reason(finish, names_tool=names_tool)
                frame += chunks.finish(answer, reasons[answer])
            if frame:
                yield frame
                frame = b""
        if len(usages) < answers:
            raise aborted()
        usage = usage_of(usages, usages[:1])
        context.prompt_tokens = usage["prompt_tokens"]
        context.finish_reasons = tuple(reasons)
        if wants_usage:
            yield chunks.usage(usage)


class _Chunks:
    """The parts of a stream's chunks that stay the same.

    Attributes:
        roles: The first chunk of each answer.
        heads: What comes before the text, for each answer.
        tail: What comes after it.
    """

    def __init__(self, call: ModelCall, answers: int, *, wants_usage: bool) -> None:
        fields = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": call.created,
            "model": call.model.name,
        }
        self._start = b"data: " + encode(fields)[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if wants_usage else b"]}\n\n"
        self._deltas = [
            b'%b{"index":%d,"delta":' % (self._start, index) for index in range(answers)
        ]
        self._unfinished = b',"logprobs":null,"finish_reason":null}' + self._end
        self.heads = [each + b'{"content":' for each in self._deltas]
        self.tail = b"}" + self._unfinished
        self.roles = b"".join(
            self._chunk(index, {"role": "assistant", "content": ""}) for index in range(answers)
        )

    def logprobs(self, answer: int, delta: llm_pb2.Delta) -> bytes:
        """Makes the chunk of a text with log probabilities."""
        logprobs = encode_line({"content": chat_logprobs(delta.logprobs), "refusal": None})
        return b'%b%b},"logprobs":%b,"finish_reason":null}%b' % (
            self.heads[answer],
            encode_line(delta.text),
            logprobs,
            self._end,
        )

    def reasoning(self, answer: int, text: str) -> bytes:
        """Makes the chunk of a part of the reasoning, under both of its names."""
        encoded = encode_line(text)
        return b'%b{"reasoning":%b,"reasoning_content":%b}%b' % (
            self._deltas[answer],
            encoded,
            encoded,
            self._unfinished,
        )

    def tool_calls(self, answer: int, delta: llm_pb2.Delta) -> bytes:
        """Makes the chunk of parts of tool calls; the first part of a call has its id and name."""
        return self._chunk(answer, {"tool_calls": [_tool_call(each) for each in delta.tool_calls]})

    def finish(self, answer: int, reason: str) -> bytes:
        """Makes the last chunk of an answer."""
        return b'%b{},"logprobs":null,"finish_reason":%b}%b' % (
            self._deltas[answer],
            encode(reason),
            self._end,
        )

    def usage(self, usage: dict[str, Any]) -> bytes:
        """Makes the last chunk of the stream."""
        return b'%b],"usage":%b}\n\n' % (self._start, encode(usage))

    def _chunk(self, answer: int, delta: dict[str, Any]) -> bytes:
        return self._deltas[answer] + encode_line(delta) + self._unfinished


def _tool_call(part: llm_pb2.ToolCallDelta) -> dict[str, Any]:
    if not part.id:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    return {
        "index": part.index,
        "id": part.id,
        "type": "function",
        "function": {"name": part.name, "arguments": part.arguments},
    }
