"""What API keys mean for OpenAI's API: which models, and how many tokens."""

import hashlib

import grpc
import httpx
import openai
import pytest
import yaml
from gateway_server import gateway

from tidegate.llm.v1 import llm_pb2

LIMIT = 10_000
ASKED = {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 500}
USED = 14


def entry(key, **more):
    return {"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


@pytest.fixture
async def http(scripted, tmp_path):
    usage = llm_pb2.Usage(prompt_tokens=11, completion_tokens=3)
    scripted.complete.finish.CopyFrom(llm_pb2.Finish(reason=1, usage=usage))
    scripted.messages = []
    keys = tmp_path / "keys.yaml"
    pirate = entry("pirate", models=["pirate"], tokens_per_minute=LIMIT)
    keys.write_text(yaml.safe_dump({"keys": [pirate]}))
    async with (
        gateway(llm=[scripted.target], api_keys_file=keys) as served,
        httpx.AsyncClient(
            base_url=f"{served.base_url}/v1", headers={"authorization": "Bearer pirate"}
        ) as http,
    ):
        yield http


async def remaining(http, **fields):
    """Returns the tokens that are left once a request has reserved its own."""
    answer = await http.post("/chat/completions", json={"model": "pirate", **ASKED, **fields})
    return int(answer.headers["x-ratelimit-remaining-tokens"])


async def test_tokens_are_reserved_before_and_settled_by_usage_after(http, scripted):
    reserved = 400 // 4 + 500
    before = await remaining(http)
    assert before == LIMIT - reserved
    # The bucket refills while the test runs: 167 tokens a second.
    assert before - USED <= await remaining(http) < before + 400
    scripted.messages = [
        llm_pb2.ChatResponse(delta=llm_pb2.Delta(text="a", token_ids=[1])),
        llm_pb2.ChatResponse(finish=scripted.complete.finish),
    ]
    assert await remaining(http, stream=True) > LIMIT - reserved - 3 * USED - 1
    assert await remaining(http) > LIMIT - reserved - 4 * USED - 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_before_its_first_token_costs_no_tokens(http, scripted, stream):
    scripted.messages = [(grpc.StatusCode.INVALID_ARGUMENT, "no")]
    for _ in range(LIMIT // 600 + 2):
        answer = await http.post(
            "/chat/completions", json={"model": "pirate", "stream": stream, **ASKED}
        )
        assert answer.status_code == 400


async def test_a_key_sees_and_uses_only_its_models(http):
    listed = (await http.get("/models")).json()["data"]
    assert [each["id"] for each in listed] == ["pirate"]
    for answer in (
        await http.post("/chat/completions", json={"model": "scripted", **ASKED}),
        await http.post("/completions", json={"model": "scripted", "prompt": "x"}),
        await http.post("/responses", json={"model": "scripted", "input": "x"}),
        await http.post("/embeddings", json={"model": "scripted", "input": "x"}),
        await http.get("/models/scripted"),
    ):
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
    unknown = await http.post("/chat/completions", json={"model": "?", **ASKED})
    assert unknown.json()["error"]["message"] == "the model '?' does not exist; there is: pirate"


async def test_a_used_up_budget_raises_the_error_of_the_sdk(http):
    url = str(http.base_url)
    async with openai.AsyncOpenAI(base_url=url, api_key="pirate", max_retries=0) as sdk:
        with pytest.raises(openai.RateLimitError) as raised:
            await sdk.chat.completions.create(model="pirate", **{**ASKED, "max_tokens": LIMIT})
    assert raised.value.response.headers["x-ratelimit-limit-tokens"] == str(LIMIT)
