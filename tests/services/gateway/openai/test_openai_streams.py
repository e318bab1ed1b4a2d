"""Streams, frame by frame: what the server sends is scripted, the gateway is real."""

import asyncio
import json
import sys
import time

import grpc
import openai
import pytest

from tidegate.gateway.openai import replies
from tidegate.llm.v1 import llm_pb2

MESSAGES = [{"role": "user", "content": "hi"}]
ASKED = {"model": "scripted", "messages": MESSAGES}


def delta(text="", answer=0, **fields):
    fields.setdefault("token_ids", [1])
    return llm_pb2.ChatResponse(delta=llm_pb2.Delta(text=text, **fields), answer=answer)


def finish(reason=llm_pb2.FINISH_REASON_STOP, answer=0, **fields):
    usage = llm_pb2.Usage(prompt_tokens=11, completion_tokens=3, cached_prompt_tokens=4)
    return llm_pb2.ChatResponse(
        finish=llm_pb2.Finish(reason=reason, usage=usage), answer=answer, **fields
    )


async def frames(clients, body, path="/v1/chat/completions"):
    """Returns the events of a stream, each checked against its description."""
    answer = await clients.http.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events(answer.text)


def events(text):
    lines = [line for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_chat_begins_with_its_role_and_ends_with_its_reason(clients, scripted):
    scripted.messages = [delta("Tok"), delta("yo"), finish()]
    chunks = await frames(clients, ASKED)
    for each in chunks:
        replies.ChatCompletionChunk.model_validate(each)
        assert "usage" not in each
    choices = [each["choices"][0] for each in chunks]
    assert [each["delta"] for each in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "Tok"},
        {"content": "yo"},
        {},
    ]
    assert [each["finish_reason"] for each in choices] == [None, None, None, "stop"]


async def test_usage_comes_last_and_alone_and_only_if_wanted(clients, scripted):
    scripted.messages = [delta("a"), finish()]
    chunks = await frames(clients, {**ASKED, "stream_options": {"include_usage": True}})
    assert [each["usage"] for each in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_several_answers_share_a_stream_and_its_usage(clients, scripted):
    scripted.messages = [
        delta("a"),
        delta("b", answer=1),
        finish(),
        finish(llm_pb2.FINISH_REASON_LENGTH, answer=1),
    ]
    asked = {**ASKED, "n": 2, "stream_options": {"include_usage": True}}
    chunks = await frames(clients, asked)
    told = [
        (c["index"], c["delta"].get("content"), c["finish_reason"])
        for each in chunks[:-1]
        for c in each["choices"]
    ]
    assert told == [
        (0, "", None),
        (1, "", None),
        (0, "a", None),
        (1, "b", None),
        (0, None, "stop"),
        (1, None, "length"),
    ]
    assert chunks[-1]["usage"]["prompt_tokens"] == 11
    assert chunks[-1]["usage"]["completion_tokens"] == 6


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "time")
]


async def test_tool_calls_have_their_id_once_and_keep_their_index(clients, scripted):
    part = llm_pb2.ToolCallDelta
    scripted.messages = [
        delta(tool_calls=[part(index=0, id="call_1", name="weather")]),
        delta(tool_calls=[part(index=0, arguments='{"city":')]),
        delta(tool_calls=[part(index=0, arguments='"Tokyo"}'),
                          part(index=1, id="call_2", name="time", arguments="{}")]),
        finish(llm_pb2.FINISH_REASON_TOOL_CALLS),
    ]  # fmt: skip
    chunks = await frames(clients, {**ASKED, "tools": TOOLS})
    for each in chunks:
        replies.ChatCompletionChunk.model_validate(each)
    async with clients.sdk.chat.completions.stream(**ASKED, tools=TOOLS) as stream:
        message = (await stream.get_final_completion()).choices[0]
    calls = [(each.id, each.function.name, each.function.arguments)
             for each in message.message.tool_calls]  # fmt: skip
    assert calls == [("call_1", "weather", '{"city":"Tokyo"}'), ("call_2", "time", "{}")]
    assert message.finish_reason == "tool_calls"
    sent = scripted.requests[0]
    assert [each.name for each in sent.tools] == ["weather", "time"]
    assert json.loads(sent.tools[0].parameters_json_schema) == {"type": "object"}


@pytest.mark.parametrize(
    ("choice", "reason", "told"),
    [
        ("required", llm_pb2.FINISH_REASON_TOOL_CALLS, "tool_calls"),
        ({"type": "function", "function": {"name": "time"}}, llm_pb2.FINISH_REASON_TOOL_CALLS,
         "stop"),
        ("required", llm_pb2.FINISH_REASON_LENGTH, "length"),
    ],
)  # fmt: skip
async def test_finish_reasons_of_tool_calls_are_those_of_openai(
    clients, scripted, choice, reason, told
):
    scripted.messages = [finish(reason)]
    chunks = await frames(clients, {**ASKED, "tools": TOOLS, "tool_choice": choice})
    assert chunks[-1]["choices"][0]["finish_reason"] == told


async def test_reasoning_has_both_of_its_names(clients, scripted):
    scripted.messages = [delta(reasoning="Hm."), delta("Tokyo"), finish()]
    chunks = await frames(clients, ASKED)
    assert chunks[1]["choices"][0]["delta"] == {"reasoning": "Hm.", "reasoning_content": "Hm."}


async def test_logprobs_have_bytes_and_never_a_replacement_character(clients, scripted):
    def position(data, top=()):
        token = llm_pb2.TokenLogprob(token="�", token_bytes=data, logprob=-0.5)
        return llm_pb2.Logprobs(chosen=token, top=[token, *top])

    impossible = llm_pb2.TokenLogprob(token="x", token_bytes=b"x", logprob=float("-inf"))
    tokyo = "東".encode()
    scripted.messages = [
        delta("", logprobs=[position(tokyo[:2])]),
        delta("東", logprobs=[position(tokyo[2:], [impossible])]),
        finish(),
    ]
    answer = await clients.http.post(
        "/v1/chat/completions", json={**ASKED, "stream": True, "logprobs": True, "top_logprobs": 2}
    )
    assert "�" not in answer.text
    positions = [
        each
        for chunk in events(answer.text)
        if chunk["choices"][0]["logprobs"]
        for each in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert b"".join(bytes(each["bytes"]) for each in positions) == tokyo
    assert positions[0]["token"] == r"\xe6\x9d"
    assert positions[1]["top_logprobs"][1]["logprob"] == -9999.0


async def test_no_line_end_of_unicode_cuts_a_frame(clients, scripted):
    text = "a\u2028b\u2029c\u0085d – “e”"
    scripted.messages = [delta(text), finish()]
    lines = []
    async with clients.http.stream(
        "POST", "/v1/chat/completions", json={**ASKED, "stream": True}
    ) as answer:
        async for each in answer.aiter_lines():
            lines.append(each)
    chunks = events("\n".join(lines))
    assert chunks[1]["choices"][0]["delta"]["content"] == text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_a_silent_server_is_covered_by_comments_before_the_first_token(
    clients, scripted, path
):
    go = asyncio.Event()
    kind = llm_pb2.GenerateResponse if path == "/v1/completions" else llm_pb2.ChatResponse
    scripted.messages = [go, kind(delta=llm_pb2.Delta(text="a")), kind(finish=finish().finish)]
    body = {"model": "scripted", "messages": MESSAGES, "prompt": "a", "input": "a"}
    keys = {"chat/completions": "messages", "completions": "prompt", "responses": "input"}
    key = keys[path.removeprefix("/v1/")]
    async with clients.http.stream(
        "POST", path, json={"model": "scripted", "stream": True, key: body[key]}
    ) as answer:
        lines = answer.aiter_lines()
        assert answer.status_code == 200
        assert (await anext(lines)).startswith(": ")
        go.set()
        rest = [each async for each in lines]
    assert rest[-2] == "data: [DONE]" or rest[-1] == "data: [DONE]"


async def test_an_error_before_the_first_token_has_a_status(clients, scripted):
    scripted.messages = [(grpc.StatusCode.UNAVAILABLE, "gone")]
    answer = await clients.http.post("/v1/chat/completions", json={**ASKED, "stream": True})
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN]
)
async def test_an_error_in_mid_stream_is_an_event_of_a_server_fault(clients, scripted, code):
    scripted.messages = [delta("a"), (code, "gone")]
    stream = await clients.sdk.chat.completions.create(**ASKED, stream=True)
    with pytest.raises(openai.APIError) as raised:
        async for _ in stream:
            pass
    assert raised.value.body["type"] == "server_error"
    assert raised.value.body.keys() == {"message", "type", "param", "code"}
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("ends", ["abort", "early"])
async def test_an_answer_that_its_server_stops_is_an_error_and_no_reason(clients, scripted, ends):
    scripted.messages = [delta("a")]
    if ends == "abort":
        scripted.messages.append(finish(llm_pb2.FINISH_REASON_ABORT))
    chunks = await frames(clients, ASKED)
    assert chunks[-1]["error"]["code"] == "answer_aborted"
    assert all(each["choices"][0]["finish_reason"] is None for each in chunks[:-1])


async def test_a_response_tells_its_items_one_after_the_other(clients, scripted):
    part = llm_pb2.ToolCallDelta
    scripted.messages = [
        delta(reasoning="Hm."),
        delta("Let me "),
        delta("see."),
        delta(tool_calls=[part(index=0, id="call_1", name="weather", arguments="{")]),
        delta(tool_calls=[part(index=0, arguments="}")]),
        finish(llm_pb2.FINISH_REASON_TOOL_CALLS),
    ]
    asked = {"model": "scripted", "input": "hi"}
    told = await frames(clients, asked, "/v1/responses")
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    kinds = [each["type"].removeprefix("response.") for each in told]
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        "output_item.added",
        *("function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    response = told[-1]["response"]
    assert [each["type"] for each in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]
    assert response["output"][1]["content"][0]["text"] == "Let me see."
    assert response["output"][2]["arguments"] == "{}"
    assert response["usage"]["total_tokens"] == 14
    replies.ResponseReply.model_validate(response)
    async with clients.sdk.responses.stream(**asked) as stream:
        final = await stream.get_final_response()
    assert final.output_text == "Let me see."


async def test_a_response_that_fails_in_mid_stream_says_so(clients, scripted):
    scripted.messages = [delta("a"), (grpc.StatusCode.UNAVAILABLE, "gone")]
    told = await frames(clients, {"model": "scripted", "input": "hi"}, "/v1/responses")
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["status"] == "failed"
    assert told[-1]["response"]["error"]["code"] == "server_error"


async def test_prompts_share_a_stream_and_fail_together(clients, scripted):
    scripted.messages = [
        llm_pb2.GenerateResponse(delta=llm_pb2.Delta(text="a", token_ids=[1])),
        llm_pb2.GenerateResponse(finish=finish().finish),
    ]
    asked = {"model": "scripted", "prompt": [[1, 2], [3]], "echo": True}
    chunks = await frames(clients, asked, "/v1/completions")
    texts = {0: "", 1: ""}
    for each in chunks:
        replies.Completion.model_validate(each)
        texts[each["choices"][0]["index"]] += each["choices"][0]["text"]
    assert texts == {0: "1 2a", 1: "3a"}
    scripted.messages = [scripted.messages[0], (grpc.StatusCode.INTERNAL, "broken")]
    chunks = await frames(clients, asked, "/v1/completions")
    assert chunks[-1]["error"]["type"] == "server_error"


@pytest.mark.parametrize("kind", ["stream", "before the first token", "unary"])
async def test_a_client_that_leaves_ends_the_call(clients, scripted, kind):
    """Prints the time from the close of the socket to the end of the call."""
    scripted.messages = [asyncio.Event()]
    if kind == "stream":
        scripted.messages.insert(0, delta("a"))
    body = json.dumps({**ASKED, "stream": kind != "unary"}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", clients.served.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    if kind == "stream":
        await reader.readuntil(b'"content":"a"')
    else:
        while not scripted.requests:
            await asyncio.sleep(0.005)
    writer.close()
    left_s = time.monotonic()
    async with asyncio.timeout(1):
        await scripted.ended.wait()
    took_ms = (time.monotonic() - left_s) * 1000
    sys.stdout.write(f"{kind}: {took_ms:.1f} ms from close to the end of the call\n")
    assert took_ms < 50


async def test_a_client_that_does_not_read_stops_the_stream_of_the_server(clients, scripted):
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 1
            yield delta("x" * 1000)

    scripted.messages = endless()
    body = json.dumps({**ASKED, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", clients.served.port, limit=1024)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    before, quiet = -1, 0
    async with asyncio.timeout(30):
        while quiet < 3:
            before, quiet = sent, quiet + 1 if sent == before and sent else 0
            await asyncio.sleep(0.2)
    assert sent < 20_000  # kilobytes, in the buffers of four sockets and of gRPC
    await reader.readexactly(5_000_000)
    async with asyncio.timeout(10):
        while sent == before:
            await asyncio.sleep(0.01)
    writer.transport.abort()
    async with asyncio.timeout(10):
        await scripted.ended.wait()


@pytest.mark.parametrize(
    ("code", "kind", "requests"),
    [
        (grpc.StatusCode.UNAVAILABLE, openai.InternalServerError, 3),
        (grpc.StatusCode.UNAUTHENTICATED, openai.AuthenticationError, 1),
        (grpc.StatusCode.PERMISSION_DENIED, openai.PermissionDeniedError, 1),
        (grpc.StatusCode.NOT_FOUND, openai.NotFoundError, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, openai.BadRequestError, 1),
    ],
)
async def test_the_sdk_raises_the_class_of_the_status_and_retries_what_it_should(
    clients, scripted, code, kind, requests
):
    scripted.messages = [(code, "no")]
    sdk = clients.sdk.with_options(max_retries=2)
    with pytest.raises(kind) as raised:
        await sdk.chat.completions.create(**ASKED)
    assert raised.value.request_id
    assert raised.value.body.keys() == {"message", "type", "param", "code"}
    assert len(scripted.requests) == requests
