"""The real model calls tools over gRPC, on vLLM, with vLLM's parser for Hermes models."""

import asyncio
import json

import grpc
import pytest
from llm_server import chat, fields, refusal

from tidegate.llm.v1 import llm_pb2

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
}
WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather of a city.",
    "parameters_json_schema": json.dumps(SCHEMA),
}
TIME = {"name": "get_time", "description": "Tells the time."}
QUESTION = "What is the weather in Tokyo?"
REQUIRED = {"mode": "MODE_REQUIRED"}
TOOL_CALLS = llm_pb2.FINISH_REASON_TOOL_CALLS


def asking(*, text=QUESTION, tools=(WEATHER, TIME), choice=None, single=False, **sampling):
    request = chat(text, **{"temperature": 0, "max_tokens": 60, **sampling})
    request.tools.extend(llm_pb2.Tool(**each) for each in tools)
    if choice is not None:
        request.tool_choice.CopyFrom(llm_pb2.ToolChoice(**choice))
    request.single_tool_call = single
    return request


def after_examples(request):
    """Puts a conversation before the question in which the model has called the tool twice."""
    (question,) = request.messages
    del request.messages[:]
    for number, (city, weather) in enumerate((("Oslo", "rain"), ("Paris", "sun"))):
        arguments = json.dumps({"city": city})
        call = {"id": f"call_{number}", "name": "get_weather", "arguments": arguments}
        request.messages.extend(
            [
                llm_pb2.Message(role="ROLE_USER", content=f"What is the weather in {city}?"),
                llm_pb2.Message(role="ROLE_ASSISTANT", tool_calls=[call]),
                llm_pb2.Message(role="ROLE_TOOL", content=weather, tool_call_id=call["id"]),
                llm_pb2.Message(role="ROLE_ASSISTANT", content=f"In {city} there is {weather}."),
            ]
        )
    request.messages.append(question)
    return request


async def answers(client, request):
    """Returns the joined stream, its last message and its trailers, and the whole answer."""
    call = client.stub.Chat(request)
    pieces = [piece async for piece in call]
    calls = {}
    for part in (part for piece in pieces for part in piece.delta.tool_calls):
        if part.index not in calls:
            assert part.index == len(calls)
            assert part.id
            assert part.name
            calls[part.index] = [part.name, ""]
        else:
            assert not part.id
            assert not part.name
        calls[part.index][1] += part.arguments
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(chat=request))
    found = [tuple(each) for each in calls.values()]
    assert [(each.name, each.arguments) for each in whole.output.tool_calls] == found
    text = "".join(piece.delta.text for piece in pieces)
    assert whole.output.text == text
    assert whole.finish.reason == pieces[-1].finish.reason
    return text, found, pieces[-1].finish, dict(await call.trailing_metadata())


async def test_the_model_reports_its_parsers(client):
    (model,) = (await client.stub.ListModels(llm_pb2.ListModelsRequest())).models
    assert (model.tool_parser, model.reasoning_parser) == ("hermes", "")


async def test_the_model_decides_to_call_a_tool(server, client):
    before = await server.metric("tidegate_llm_finished_total", reason="tool_calls")
    text, calls, finish, trailers = await answers(client, after_examples(asking()))
    assert (text.strip(), len(calls)) == ("", 1)
    (name, arguments) = calls[0]
    assert name == "get_weather"
    assert json.loads(arguments) == {"city": "Tokyo"}
    assert finish.reason == TOOL_CALLS
    assert trailers["tidegate-finish"] == "tool_calls"
    # The rollout's signal of empty answers must not count it.
    assert int(trailers["tidegate-chars-out"]) > 0
    after = await server.metric("tidegate_llm_finished_total", reason="tool_calls")
    assert after - before == 2


async def test_the_model_decides_to_call_no_tool(client):
    text, calls, finish, _ = await answers(
        client, asking(text="What is the capital of Japan?", tools=[TIME])
    )
    assert (bool(text), calls) == (True, [])
    assert finish.reason != TOOL_CALLS


async def test_a_call_that_is_cut_has_the_reason_length(client):
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(chat=after_examples(asking())))
    tokens = whole.finish.usage.completion_tokens
    for request in (
        after_examples(asking(max_tokens=tokens - 10)),
        asking(choice=REQUIRED, max_tokens=13),
        asking(choice={"tool": "get_weather"}, max_tokens=3),
    ):
        text, calls, finish, trailers = await answers(client, request)
        assert (text.strip(), len(calls)) == ("", 1)
        with pytest.raises(json.JSONDecodeError):
            json.loads(calls[0][1])
        assert finish.reason == llm_pb2.FINISH_REASON_LENGTH
        assert trailers["tidegate-finish"] == "length"


async def test_a_strict_tool_gets_arguments_of_its_schema(client):
    schema = {"properties": {"town": {"const": "Kyoto"}}, "required": ["town"]}
    strict = WEATHER | {"parameters_json_schema": json.dumps(schema), "strict": True}
    _, calls, finish, _ = await answers(client, after_examples(asking(tools=[strict, TIME])))
    assert [name for name, _ in calls] == ["get_weather"]
    assert json.loads(calls[0][1]) == {"town": "Kyoto"}
    assert finish.reason == TOOL_CALLS


async def test_required_calls_follow_their_schemas(client):
    requests = [asking(choice=REQUIRED, single=True), asking(choice=REQUIRED, max_tokens=120)]
    for request in requests:
        text, calls, finish, trailers = await answers(client, request)
        assert text == ""
        assert calls
        if finish.reason == TOOL_CALLS:
            assert trailers["tidegate-finish"] == "tool_calls"
        else:
            assert finish.reason == llm_pb2.FINISH_REASON_LENGTH
            calls.pop()
        for name, arguments in calls:
            value = json.loads(arguments)
            if name == "get_time":
                assert value == {}
            else:
                assert list(value) == ["city"]
                assert len(value["city"]) <= 12
    assert len((await answers(client, requests[0]))[1]) == 1


async def test_a_named_tool_is_called_once_also_in_many_answers(client):
    for name, expected in (("get_time", {}), ("get_weather", {"city"})):
        text, calls, finish, _ = await answers(client, asking(choice={"tool": name}))
        assert (text, [each for each, _ in calls]) == ("", [name])
        assert json.loads(calls[0][1]).keys() == set(expected)
        assert finish.reason == TOOL_CALLS
    request = asking(choice={"tool": "get_weather"}, temperature=1, seed=3, answers=3)
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(chat=request))
    outputs = [whole.output, *(each.output for each in whole.further_answers)]
    ids = [each.tool_calls[0].id for each in outputs]
    assert len(set(ids)) == len(outputs) == 3
    assert all("city" in json.loads(each.tool_calls[0].arguments) for each in outputs)


async def test_no_tool_is_called_if_none_may_be(client):
    request = after_examples(asking(choice={"mode": "MODE_NONE"}))
    text, calls, finish, _ = await answers(client, request)
    assert calls == []
    assert finish.reason != TOOL_CALLS
    # The template was not told of the tools.
    without = after_examples(asking(tools=()))
    plain = await client.stub.Complete(llm_pb2.CompleteRequest(chat=without))
    assert plain.finish.usage.prompt_tokens == finish.usage.prompt_tokens
    assert plain.output.text == text


@pytest.mark.parametrize(
    ("schema", "choice"),
    [
        ('{"properties": {"a": {"type": "banana"}}}', REQUIRED),
        ('{"properties": {"a": {"type": "array", "minItems": 1000000000}}}', {"tool": "bad"}),
        ('{"properties": {"a": {"type": "array", "uniqueItems": true}}}', None),
    ],
)
async def test_a_schema_that_cannot_be_enforced_is_refused_with_its_tool(client, schema, choice):
    bad = {"name": "bad", "parameters_json_schema": schema, "strict": choice is None}
    request = asking(tools=[TIME, bad], choice=choice)
    code, details = await refusal(client.stub.Chat(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == ["tools[1].parameters_json_schema"]
    assert details["ErrorInfo"].reason == "BAD_CONSTRAINT"


async def test_a_tokenized_conversation_shows_its_tools(client):
    request = after_examples(asking())
    conversation = {"messages": request.messages, "tools": request.tools}
    tokenized = await client.stub.Tokenize(llm_pb2.TokenizeRequest(conversation=conversation))
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(chat=request))
    assert len(tokenized.token_ids) == whole.finish.usage.prompt_tokens
    shown = "".join(tokenized.tokens)
    assert '"name": "get_weather"' in shown
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}' in shown


async def test_the_developers_role_and_parts_reach_the_template(client):
    def request(role, content):
        messages = [
            llm_pb2.Message(role=role, content="Be brief."),
            llm_pb2.Message(role="ROLE_USER", **content),
        ]
        return llm_pb2.TokenizeRequest(conversation={"messages": messages})

    parts = {"parts": [{"text": "one"}, {"text": "two"}]}
    found = await asyncio.gather(
        *(
            client.stub.Tokenize(request(role, content))
            for role, content in (
                ("ROLE_SYSTEM", {"content": "one\ntwo"}),
                ("ROLE_DEVELOPER", {"content": "one\ntwo"}),
                ("ROLE_SYSTEM", parts),
            )
        )
    )
    assert found[0] == found[1] == found[2]
