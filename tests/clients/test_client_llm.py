"""The LLM client: streams, options and unary calls."""

import json
import threading

import pytest
from double_server import double_server, status
from grpc import StatusCode
from pydantic import BaseModel

from tidegate.client import (
    AsyncClient,
    Client,
    FinishReason,
    InvalidInputError,
    Message,
    Role,
    ServerFaultError,
    TokenLogprob,
    Tool,
    ToolCall,
    UnavailableError,
)
from tidegate.client._shared.llm import (
    PartialAnswer,
    completion,
    delta,
    embed_request,
    tokenize_request,
)
from tidegate.llm.v1 import llm_pb2


@pytest.fixture
def server():
    with double_server() as double:
        yield double


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


def test_chat_streams_deltas_and_ends_with_a_finish(client):
    stream = client.llm.chat("What is the capital of Japan?")
    deltas = list(stream)
    assert [delta.text for delta in deltas] == ["Par", "is", ".", ""]
    assert [delta.finish is not None for delta in deltas] == [False, False, False, True]
    assert stream.text == "Paris."
    assert stream.finish.reason is FinishReason.STOP
    assert stream.finish.usage.completion_tokens == 3
    assert stream.finish.timings.time_to_first_token_s == pytest.approx(0.05)
    assert stream.finish.timings.max_inter_message_s is None


def test_stream_can_be_read_whole(client):
    answer = client.llm.generate("The capital of Japan is").read()
    assert (answer.text, answer.token_ids) == ("Paris.", (0, 1, 2))


def test_deltas_arrive_before_the_answer_is_complete(client, server):
    go_on = threading.Event()
    server.script.deltas = ("first", go_on, "last")
    stream = client.llm.chat("hello")
    assert next(stream).text == "first"
    assert stream.finish is None
    go_on.set()
    assert stream.read().text == "firstlast"


def test_leaving_a_stream_stops_the_answer(client, server):
    never = threading.Event()
    server.script.deltas = ("first", never, "last")
    with client.llm.chat("hello") as stream:
        assert next(stream).text == "first"
    assert server.script.cancelled.wait(timeout=10)
    never.set()


def test_answer_without_a_finish_is_an_error(client, server):
    server.script.finishes = False
    with pytest.raises(ServerFaultError, match="may be truncated"):
        client.llm.chat("hello").read()


def test_broken_stream_keeps_its_deltas_and_is_not_retried(client, server):
    server.script.deltas = ("half", status(StatusCode.UNAVAILABLE, "the engine died"))
    stream = client.llm.chat("hello")
    with pytest.raises(UnavailableError, match="the engine died"):
        stream.read()
    assert stream.text == "half"
    assert len(server.script.requests) == 1


def test_options_reach_the_request(client, server):
    client.llm.chat(
        [Message(Role.SYSTEM, "be brief"), {"role": "user", "content": "hello"}],
        model="m",
        version="2",
        max_tokens=5,
        temperature=0.0,
        stop="END",
        logit_bias={7: -1.0},
        choice=["yes", "no"],
        template_arguments={"tools": ["a"]},
    ).read()
    request = server.script.requests[0]
    assert [(m.role, m.content) for m in request.messages] == [
        (llm_pb2.ROLE_SYSTEM, "be brief"),
        (llm_pb2.ROLE_USER, "hello"),
    ]
    sampling = request.options.sampling
    assert (request.options.model, request.options.version) == ("m", "2")
    assert (sampling.max_tokens, list(sampling.stop)) == (5, ["END"])
    assert sampling.HasField("temperature")
    assert not sampling.HasField("top_p")
    assert list(sampling.constraint.choice.options) == ["yes", "no"]
    assert list(request.template_arguments["tools"]) == ["a"]


def test_special_tokens_as_text_reaches_each_request_with_a_text(client, server):
    client.llm.generate("a", special_tokens_as_text=True).read()
    client.llm.complete("a", special_tokens_as_text=True)
    client.llm.complete([{"role": "user", "content": "a"}], special_tokens_as_text=True)
    client.llm.generate("a").read()
    generate, complete, conversation, plain = server.script.requests
    assert generate.prompt.special_tokens_as_text
    assert complete.generate.prompt.special_tokens_as_text
    assert conversation.WhichOneof("input") == "chat"
    assert not plain.prompt.special_tokens_as_text
    texts = embed_request(["a", [1]], model="", special_tokens_as_text=True).inputs
    assert [each.special_tokens_as_text for each in texts] == [True, False]
    tokenize = tokenize_request(
        "a", model="", omit_special_tokens=False, special_tokens_as_text=True
    )
    assert tokenize.special_tokens_as_text


def test_log_probabilities_have_the_bytes_of_their_tokens():
    token = llm_pb2.TokenLogprob(
        token_id=7, token="\ufffd", logprob=-1, rank=2, token_bytes=b"\xf0"
    )
    response = llm_pb2.GenerateResponse(
        delta={"text": "", "token_ids": [7], "logprobs": [{"chosen": token, "top": [token]}]}
    )
    (place,) = delta(response).logprobs
    assert place.chosen == TokenLogprob(7, "\ufffd", -1.0, 2, b"\xf0")
    assert place.top == (place.chosen,)


def test_tools_and_their_results_reach_the_request(client, server):
    class Arguments(BaseModel):
        city: str

    call = ToolCall("c1", "weather", '{"city": "Tokyo"}')
    client.llm.chat(
        [
            Message(Role.DEVELOPER, "be brief"),
            Message(Role.ASSISTANT, tool_calls=(call,), reasoning="hm"),
            {"role": "tool", "content": "Sun", "tool_call_id": "c1"},
        ],
        tools=[
            Tool("weather", "Tells.", Arguments, strict=True),
            Tool("time"),
            Tool("look", parameters={"type": "object"}),
        ],
        tool_choice="weather",
        single_tool_call=True,
    ).read()
    client.llm.chat("a", tools=[Tool("time")], tool_choice="required").read()
    client.llm.chat("a", tools=[Tool("time")]).read()
    named, required, free = server.script.requests
    developer, assistant, result = named.messages
    assert developer.role == llm_pb2.ROLE_DEVELOPER
    assert (assistant.tool_calls[0].id, assistant.reasoning) == ("c1", "hm")
    assert (result.role, result.tool_call_id) == (llm_pb2.ROLE_TOOL, "c1")
    weather, time, look = named.tools
    assert json.loads(weather.parameters_json_schema)["required"] == ["city"]
    assert (weather.strict, time.parameters_json_schema) == (True, "")
    assert look.parameters_json_schema == '{"type": "object"}'
    assert (named.tool_choice.tool, named.single_tool_call) == ("weather", True)
    assert required.tool_choice.mode == llm_pb2.ToolChoice.MODE_REQUIRED
    assert not free.HasField("tool_choice")


def test_a_streamed_answer_has_the_reasoning_and_the_calls_of_its_deltas():
    parts = (
        {"reasoning": "Hm"},
        {"reasoning": "m.", "tool_calls": [{"index": 0, "id": "x", "name": "f"}]},
        {"tool_calls": [{"index": 0, "arguments": "{"}, {"index": 0, "arguments": "}"}]},
        {"tool_calls": [{"index": 1, "id": "y", "name": "g", "arguments": "{}"}]},
    )
    finish = {"reason": "FINISH_REASON_TOOL_CALLS", "usage": {"reasoning_tokens": 2}}
    answer = PartialAnswer("target")
    for part in parts:
        answer.add(delta(llm_pb2.ChatResponse(delta=part)))
    answer.add(delta(llm_pb2.ChatResponse(finish=finish)))
    whole = answer.whole()
    assert (whole.reasoning, whole.text) == ("Hmm.", "")
    assert whole.tool_calls == (ToolCall("x", "f", "{}"), ToolCall("y", "g", "{}"))
    assert whole.finish.reason is FinishReason.TOOL_CALLS
    assert whole.finish.usage.reasoning_tokens == 2
    in_one = llm_pb2.CompleteResponse(
        output={
            "reasoning": "Hmm.",
            "tool_calls": [{"id": "x", "name": "f", "arguments": "{}"}],
        },
        finish=finish,
    )
    assert completion(in_one).tool_calls == (ToolCall("x", "f", "{}"),)


def test_schema_may_be_a_mapping(client, server):
    client.llm.complete("x", json_schema={"type": "object"})
    request = server.script.requests[0].generate
    assert request.options.sampling.constraint.json_schema == '{"type": "object"}'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "choice": ["b"]}, "exclude each other"),
        ({"max_tokens": -1}, "wrong type or range"),
        ({"temperature": "hot"}, "wrong type or range"),
        ({"json_schema": int}, "int is not a pydantic model"),
    ],
)
def test_invalid_options_are_rejected_before_the_call(client, server, options, message):
    with pytest.raises(InvalidInputError, match=message):
        client.llm.chat("hello", **options)
    assert not server.script.requests


def test_unknown_option_is_a_type_error(client):
    with pytest.raises(TypeError, match="max_token"):
        client.llm.chat("hello", max_token=1)


def test_invalid_message_names_its_index(client):
    with pytest.raises(InvalidInputError, match=r"messages\[1\] must have 'role' \(one of system"):
        client.llm.chat([Message(Role.USER, "a"), {"role": "king"}])


def test_complete_tells_prompts_from_conversations(client, server):
    assert client.llm.complete("The capital").text == "Paris."
    client.llm.complete([5, 6])
    client.llm.complete([{"role": "user", "content": "hello"}])
    text, ids, chat = server.script.requests
    assert text.generate.prompt.text == "The capital"
    assert list(ids.generate.prompt.token_ids.ids) == [5, 6]
    assert chat.chat.messages[0].content == "hello"


def test_unary_calls(client):
    tokens = client.llm.tokenize("two words")
    assert (tokens.token_ids, tokens.tokens, len(tokens)) == ((0, 1), ("two", "words"), 2)
    assert client.llm.detokenize([3, 4]) == "3 4"
    vectors = client.llm.embed(["a", "b"])
    assert vectors.vectors[1] == pytest.approx((0.6, 0.8))
    assert [model.name for model in client.llm.models()] == ["smol"]


async def test_async_chat_streams(server):
    async with AsyncClient(server.address) as client:
        stream = client.llm.chat("hello")
        assert [delta.text async for delta in stream] == ["Par", "is", ".", ""]
        assert stream.finish.usage.prompt_tokens == 11
        assert (await client.llm.generate([1, 2]).read()).text == "Paris."


async def test_async_leaving_a_stream_stops_the_answer(server):
    never = threading.Event()
    server.script.deltas = ("first", never)
    async with AsyncClient(server.address) as client, client.llm.chat("hello") as stream:
        assert (await anext(stream)).text == "first"
    assert server.script.cancelled.wait(timeout=10)
    never.set()


async def test_async_unary_calls(server):
    async with AsyncClient(server.address) as client:
        assert (await client.llm.complete("x")).text == "Paris."
        assert len(await client.llm.tokenize("two words")) == 2
        assert await client.llm.detokenize([3]) == "3"
        assert len((await client.llm.embed("a")).vectors) == 1
        assert [model.name for model in await client.llm.models()] == ["smol"]
