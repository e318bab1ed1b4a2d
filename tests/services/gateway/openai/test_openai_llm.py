"""OpenAI's own client against the gateway and the real LLM server with the real model."""

import asyncio
import json

import openai
import psutil
import pytest
from pydantic import BaseModel

from tidegate.gateway.openai import replies

pytestmark = pytest.mark.llm

JAPAN = [{"role": "user", "content": "What is the capital of Japan?"}]
ANSWER = "The capital of Japan is Tokyo."
ASKED = {"model": "smollm2", "messages": JAPAN, "temperature": 0, "max_completion_tokens": 24}
LONG = {**ASKED, "max_completion_tokens": 900, "extra_body": {"ignore_eos": True}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


async def test_the_async_client_gets_an_answer_in_one_piece_and_as_a_stream(real):
    raw = await real.sdk.chat.completions.with_raw_response.create(**ASKED)
    completion = raw.parse()
    replies.ChatCompletion.model_validate_json(raw.content)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion._request_id
    stream = await real.sdk.chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = [each async for each in stream]
    assert "".join(c.delta.content or "" for each in chunks for c in each.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == completion.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == completion.usage.prompt_tokens
    async with real.sdk.chat.completions.stream(**ASKED) as helper:
        final = await helper.get_final_completion()
    assert final.choices[0].message.content == ANSWER


async def test_the_sync_client_gets_the_same(real):
    def ask():
        with openai.OpenAI(base_url=real.url, api_key="none") as client:
            assert [each.id for each in client.models.list()] == ["smollm2"]
            with client.chat.completions.stream(**ASKED) as stream:
                text = "".join(each.delta for each in stream if each.type == "content.delta")
            response = client.responses.create(
                model="smollm2", input=JAPAN[0]["content"], temperature=0, max_output_tokens=24
            )
            return text, response

    text, response = await asyncio.to_thread(ask)
    assert text == ANSWER
    assert response.output_text == ANSWER
    assert response.status == "completed"


async def test_parse_gives_an_object_of_the_schema(real):
    class City(BaseModel):
        city: str
        is_capital: bool

    parsed = await real.sdk.chat.completions.parse(**ASKED, response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)
    response = await real.sdk.responses.parse(
        model="smollm2", input=JAPAN[0]["content"], temperature=0, text_format=City
    )
    assert isinstance(response.output_parsed, City)
    # A JSON object that reaches the limit is told to be cut off.
    with pytest.raises(openai.LengthFinishReasonError):
        await real.sdk.chat.completions.parse(
            **{**ASKED, "max_completion_tokens": 2}, response_format=City
        )


async def test_completions_have_logprobs_that_tell_their_place(real):
    asked = {"model": "smollm2", "prompt": "The capital of Japan is", "temperature": 0}
    raw = await real.sdk.completions.with_raw_response.create(**asked, max_tokens=4, logprobs=2)
    completion = replies.Completion.model_validate_json(raw.content)
    choice = completion.choices[0]
    assert "Tokyo" in choice.text
    assert choice.finish_reason == "length"
    for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    stream = await real.sdk.completions.create(**asked, max_tokens=4, logprobs=2, stream=True)
    chunks = [each.choices[0] async for each in stream]
    assert "".join(each.text for each in chunks) == choice.text
    tokens = [token for each in chunks if each.logprobs for token in each.logprobs.tokens]
    assert tokens == choice.logprobs.tokens
    two = await real.sdk.completions.create(
        **{**asked, "prompt": [asked["prompt"], "The capital of Italy is"]}, max_tokens=4
    )
    assert [each.index for each in two.choices] == [0, 1]
    assert two.choices[0].text == choice.text
    assert "Rome" in two.choices[1].text


async def test_emoji_and_cjk_come_whole(real):
    text = "👩‍👩‍👧‍👦 東京は日本の首都です 🇯🇵 é"
    asked = {
        "model": "smollm2",
        "prompt": "x",
        "max_tokens": 120,
        "logprobs": 1,
        "extra_body": {"structured_outputs": {"choice": [text]}},
    }
    stream = await real.sdk.completions.create(**asked, stream=True)
    chunks = [each.choices[0] async for each in stream]
    assert "".join(each.text for each in chunks) == text
    assert len(chunks) > 3
    assert "�" not in str(chunks)


@pytest.mark.parametrize("method", ["chat", "completion", "response"])
async def test_a_prompt_over_the_context_is_told_so(real, method):
    words = "word " * 1200
    create, asked, param = {
        "chat": (
            real.sdk.chat.completions.create,
            {"messages": [{"role": "user", "content": words}], "stream": True},
            "messages",
        ),
        "completion": (real.sdk.completions.create, {"prompt": words}, "prompt"),
        "response": (real.sdk.responses.create, {"input": words}, "input"),
    }[method]
    with pytest.raises(openai.BadRequestError) as raised:
        await create(model="smollm2", **asked)
    assert raised.value.code == "context_length_exceeded"
    assert raised.value.param == param


async def test_a_schema_that_cannot_be_enforced_names_its_field(real):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as raised:
        await real.sdk.chat.completions.create(**ASKED, response_format=asked)
    assert raised.value.param == "response_format.json_schema.schema"


async def test_an_embedding_needs_a_model_that_embeds(real):
    with pytest.raises(openai.APIStatusError) as raised:
        await real.sdk.embeddings.create(model="smollm2", input="hi")
    assert raised.value.status_code == 501
    assert raised.value.code == "not_an_embedding_model"


async def test_overload_is_429_with_a_hint(real, llm):
    """The server runs 8 requests and queues 8 more; the SDK would retry, so it may not here."""
    streams = [await real.sdk.chat.completions.create(**LONG, stream=True) for _ in range(8)]
    more = [
        asyncio.create_task(real.sdk.with_options(max_retries=0).chat.completions.create(**LONG))
        for _ in range(12)
    ]
    done, waiting = await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
    error = done.pop().exception()
    assert isinstance(error, openai.RateLimitError)
    assert int(error.response.headers["retry-after-ms"]) > 0
    for each in waiting:
        each.cancel()
    await asyncio.gather(*more, return_exceptions=True)
    for each in streams:
        await each.close()
    await llm.until_idle()


async def test_a_client_that_never_reads_costs_no_memory(real, llm):
    process = psutil.Process()
    asked = {**ASKED, "max_completion_tokens": 900, "ignore_eos": True, "stream": True}
    content = json.dumps({**asked, "logprobs": True, "top_logprobs": 20}).encode()
    before = process.memory_info().rss
    _, writer = await asyncio.open_connection("127.0.0.1", real.served.port, limit=1024)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(content), content)
    )
    writer.transport.pause_reading()
    await asyncio.sleep(3)
    assert process.memory_info().rss - before < 32 * 2**20
    writer.transport.abort()
    await llm.until_idle()


@pytest.mark.parametrize("choice", ["required", "named"])
async def test_a_demanded_tool_is_always_called(real, choice):
    named = {"type": "function", "function": {"name": "get_weather"}}
    asked = {**ASKED, "tools": TOOLS, "tool_choice": named if choice == "named" else "required"}
    asked["max_completion_tokens"] = 60
    completion = await real.sdk.chat.completions.create(**asked)
    call = completion.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert completion.choices[0].finish_reason == ("stop" if choice == "named" else "tool_calls")
    async with real.sdk.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls[0].function
    assert (streamed.name, streamed.arguments) == (call.function.name, call.function.arguments)
