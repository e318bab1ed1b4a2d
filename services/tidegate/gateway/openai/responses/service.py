"""Answers requests for responses."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.event_stream import EventStream
from tidegate.gateway.openai.calls import (
    begin_call,
    find_model,
    finish_reason,
    new_id,
    prompt_estimate,
)
from tidegate.gateway.openai.encoding import chat_logprobs
from tidegate.gateway.openai.reading import read_request
from tidegate.gateway.openai.responses.reply import (
    COMPLETED,
    INCOMPLETE,
    Reply,
    call_item,
    message_item,
    output_text,
    reasoning_item,
)
from tidegate.gateway.openai.responses.request import ResponseRequest
from tidegate.gateway.openai.responses.stream import ResponseEvents
from tidegate.gateway.responses import json_response
from tidegate.llm.v1 import llm_pb2

__all__ = ["create_response"]


async def create_response(request: Request) -> Response:
    """Answers an input with a response."""
    asked = await read_request(request, ResponseRequest)
    model = find_model(request, asked.model)
    conversation = asked.conversation()
    chat = conversation.chat
    streams = bool(asked.stream)
    call = begin_call(
        request,
        model,
        "chat",
        lambda: asked.params(conversation, "" if streams else "chat."),
        streams=streams,
        prompt_tokens=prompt_estimate(conversation.characters),
        answer_tokens=asked.max_output_tokens or 0,
    )
    call.fill(chat.options)
    reply = Reply(asked, call)
    if streams:
        events = ResponseEvents(reply, chat)
        return EventStream(
            request,
            events.frames(),
            error_frame=events.failure,
            headers=call.reservation.headers,
        )
    async with call.unary():
        complete = await call.complete(llm_pb2.CompleteRequest(chat=chat))
        finish = complete.finish
        call.context.prompt_tokens = finish.usage.prompt_tokens
        call.context.completion_tokens = finish.usage.completion_tokens
        call.context.finish_reasons = (finish_reason(finish),)
        reply.output.extend(_items(complete))
    return json_response(reply.finished(finish), headers=call.reservation.headers)


def _items(complete: llm_pb2.CompleteResponse) -> list[dict[str, Any]]:
    output = complete.output
    is_complete = complete.finish.reason != llm_pb2.FINISH_REASON_LENGTH
    items: list[dict[str, Any]] = []
    if output.reasoning:
        items.append(reasoning_item(new_id("rs_"), output.reasoning, COMPLETED))
    if output.text or not (output.tool_calls or output.reasoning):
        content = output_text(output.text, chat_logprobs(output.logprobs))
        items.append(message_item(new_id("msg_"), [content], COMPLETED))
    items += [
        call_item(new_id("fc_"), each, each.arguments, COMPLETED) for each in output.tool_calls
    ]
    if not is_complete:
        # The limit cut off the last item.
        items[-1]["status"] = INCOMPLETE
    return items
