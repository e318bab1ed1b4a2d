"""A response as a stream of events.

Each item of the output is announced, grows and ends before the next one begins; only the deltas of
texts come from templates, as the chunks of chat completions do.
"""

from collections.abc import AsyncGenerator
from typing import Any

from tidegate.gateway.errors import ApiError
from tidegate.gateway.openai.calls import aborted, begun, finish_reason
from tidegate.gateway.openai.encoding import chat_logprobs, event_frame
from tidegate.gateway.openai.responses.growing_items import (
    CallItem,
    GrowingItem,
    MessageItem,
    ReasoningItem,
)
from tidegate.gateway.openai.responses.reply import COMPLETED, IN_PROGRESS, INCOMPLETE, Reply
from tidegate.llm.v1 import llm_pb2

__all__ = ["ResponseEvents"]


class ResponseEvents:
    """The events of a response.

    Args:
        reply: The response.
        chat: The message of its call.
    """

    def __init__(self, reply: Reply, chat: llm_pb2.ChatRequest) -> None:
        self._reply = reply
        self._chat = chat
        self._sequence = 0
        self._item: GrowingItem | None = None

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yields the frames of the events.

        Raises:
            ApiError: The call failed, or the server stopped the answer before its end.
        """
        call = self._reply.call
        context = call.context
        with_logprobs = self._chat.options.sampling.HasField("logprobs")
        frame = self._response("response.created") + self._response("response.in_progress")
        async with call.streamed(call.stub.Chat, [self._chat]) as (stream,):
            async for message in await begun(stream):
                delta = message.delta
                context.tokens(len(delta.token_ids))
                if delta.reasoning:
                    frame += self._reasoning(delta.reasoning)
                if with_logprobs and delta.logprobs:
                    frame += self._text(delta.text, chat_logprobs(delta.logprobs))
                elif delta.text:
                    frame += self._text(delta.text, [])
                for each in delta.tool_calls:
                    frame += self._call(each)
                if message.HasField("finish"):
                    finish = message.finish
                    context.finish_reasons = (finish_reason(finish),)
                    context.prompt_tokens = finish.usage.prompt_tokens
                    yield frame + self._end(finish)
                    return
                if frame:
                    yield frame
                    frame = b""
        raise aborted()

    def failure(self, error: ApiError) -> bytes:
        """Makes the event of an error after the first event."""
        return self._event("response.failed", {"response": self._reply.failed(error)})

    def _reasoning(self, text: str) -> bytes:
        frame = b""
        item = self._item
        if not isinstance(item, ReasoningItem):
            item = ReasoningItem(self._next_index)
            frame = self._open(item)
        return frame + item.delta(self._counted(), text)

    def _text(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        frame = b""
        item = self._item
        if not isinstance(item, MessageItem):
            item = MessageItem(self._next_index)
            frame = self._open(item)
        return frame + item.delta(self._counted(), text, logprobs)

    def _call(self, part: llm_pb2.ToolCallDelta) -> bytes:
        frame = b""
        item = self._item
        if not isinstance(item, CallItem) or item.first.index != part.index:
            item = CallItem(self._next_index, part)
            frame = self._open(item)
        if part.arguments:
            frame += item.delta(self._counted(), part.arguments)
        return frame

    @property
    def _next_index(self) -> int:
        return len(self._reply.output) + (self._item is not None)

    def _open(self, item: GrowingItem) -> bytes:
        """Ends the item before, and announces a new one."""
        frame = self._close(COMPLETED)
        self._item = item
        frame += self._event(
            "response.output_item.added",
            {"output_index": item.output_index, "item": item.written(IN_PROGRESS, is_new=True)},
        )
        if (part := item.part()) is not None:
            frame += self._event("response.content_part.added", {**item.place(), "part": part})
        return frame

    def _close(self, status: str) -> bytes:
        item, self._item = self._item, None
        if item is None:
            return b""
        frame = self._event(*item.done())
        if (part := item.part()) is not None:
            frame += self._event("response.content_part.done", {**item.place(), "part": part})
        written = item.written(status)
        self._reply.output.append(written)
        return frame + self._event(
            "response.output_item.done", {"output_index": item.output_index, "item": written}
        )

    def _end(self, finish: llm_pb2.Finish) -> bytes:
        is_complete = finish.reason != llm_pb2.FINISH_REASON_LENGTH
        frame = b""
        if self._item is None and not self._reply.output:
            # An empty answer is a message without text.
            frame = self._open(MessageItem(0))
        frame += self._close(COMPLETED if is_complete else INCOMPLETE)
        kind = "response.completed" if is_complete else "response.incomplete"
        return frame + self._event(kind, {"response": self._reply.finished(finish)})

    def _counted(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _response(self, kind: str) -> bytes:
        return self._event(kind, {"response": self._reply.in_progress()})

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        return event_frame(kind, {"type": kind, "sequence_number": self._counted(), **fields})
