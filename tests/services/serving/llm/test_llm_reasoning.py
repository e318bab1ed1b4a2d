"""Reasoning apart from the text, on vLLM: a copy of SmolLM2 whose tokenizer has marks of reasoning.

The server has no LoRA adapters, so it also returns log probabilities of prompts.

The model was not trained to reason. A bias makes it think "Well" until penalties outweigh the bias;
then another bias makes it write the mark that ends the reasoning.
"""

import json
import math
import os
import shutil

import pytest
from llm_server import LlmServer, chat

from tidegate.llm.v1 import llm_pb2

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]

THINK, THOUGHT = 7, 8
TOKYO = "What is the capital of Japan?"
ANSWER = {"choice": {"options": ["Tokyo", "Kyoto"]}}


@pytest.fixture(scope="module")
def thinking_server(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinking")
    model = folder / "model"
    shutil.copytree(models / "smollm2" / "1", model, copy_function=os.symlink)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for token_id, mark in ((THINK, "<think>"), (THOUGHT, "</think>")):
        (token,) = (each for each in tokenizer["added_tokens"] if each["id"] == token_id)
        vocabulary.pop(token["content"], None)
        token |= {"content": mark, "special": False}
        vocabulary[mark] = token_id
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    server = LlmServer.start(
        folder,
        *("--model-path", str(model), "--model-name", "thinking"),
        *("--reasoning-parser", "deepseek_r1", "--tool-parser", "hermes"),
        *("--max-running-requests", "4", "--kv-cache-gib", "1"),
    )
    server.wait_until_loaded()
    yield server
    server.stop()


@pytest.fixture
async def client(thinking_server):
    async with thinking_server.client() as client:
        yield client


async def streamed(client, request):
    pieces = [piece async for piece in client.stub.Chat(request)]
    reasoning = "".join(piece.delta.reasoning for piece in pieces)
    text = "".join(piece.delta.text for piece in pieces)
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(chat=request))
    assert (whole.output.reasoning, whole.output.text) == (reasoning, text)
    return reasoning, text, pieces[-1].finish, whole


async def thinking(client):
    """Returns sampling parameters with which the model thinks and then answers."""
    word = await client.stub.Tokenize(llm_pb2.TokenizeRequest(text="Well"))
    (token_id,) = word.token_ids
    return {
        "temperature": 0,
        "max_tokens": 60,
        "logit_bias": {token_id: 100, THOUGHT: 90},
        "presence_penalty": 2,
        "frequency_penalty": 2,
    }


async def test_the_constraint_holds_after_the_reasoning(client):
    request = chat(TOKYO, constraint=ANSWER, **await thinking(client))
    reasoning, text, finish, whole = await streamed(client, request)
    times = reasoning.count("Well")
    assert times >= 1
    assert reasoning == "Well" * times
    assert text in ANSWER["choice"]["options"]
    assert list(whole.output.token_ids).index(THOUGHT) == times
    assert finish.usage.reasoning_tokens == times
    assert finish.reason == llm_pb2.FINISH_REASON_STOP


async def test_a_demanded_call_follows_the_reasoning(client):
    schema = {"properties": {"city": {"const": "Tokyo"}}, "required": ["city"]}
    request = chat(TOKYO, **await thinking(client))
    request.tools.add(name="look", parameters_json_schema=json.dumps(schema))
    for choice in ({"tool": "look"}, {"mode": "MODE_REQUIRED"}):
        request.tool_choice.CopyFrom(llm_pb2.ToolChoice(**choice))
        request.single_tool_call = True
        reasoning, text, finish, whole = await streamed(client, request)
        assert (reasoning[:4], text) == ("Well", "")
        (call,) = whole.output.tool_calls
        assert (call.name, json.loads(call.arguments)) == ("look", {"city": "Tokyo"})
        assert finish.reason == llm_pb2.FINISH_REASON_TOOL_CALLS


async def test_an_answer_that_is_cut_while_the_model_thinks_has_no_text(client):
    request = chat(TOKYO, **{**await thinking(client), "max_tokens": 1})
    reasoning, text, finish, _ = await streamed(client, request)
    assert (reasoning, text) == ("Well", "")
    assert finish.reason == llm_pb2.FINISH_REASON_LENGTH
    assert finish.usage.reasoning_tokens == 1


async def test_a_prompt_without_a_conversation_is_continued_without_reasoning(client):
    request = llm_pb2.GenerateRequest(
        prompt={"text": "The capital of Japan is "},
        options={"sampling": {"temperature": 0, "constraint": ANSWER}},
    )
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(generate=request))
    assert whole.output.text in ANSWER["choice"]["options"]
    assert not whole.output.reasoning
    assert whole.finish.usage.reasoning_tokens == 0


async def test_the_model_reports_its_parsers(client):
    (model,) = (await client.stub.ListModels(llm_pb2.ListModelsRequest())).models
    assert (model.tool_parser, model.reasoning_parser) == ("hermes", "deepseek_r1")


async def test_the_prompt_has_log_probabilities(client):
    ids = (await client.stub.Tokenize(llm_pb2.TokenizeRequest(text="Paris is in France"))).token_ids
    request = llm_pb2.GenerateRequest(
        prompt={"token_ids": {"ids": ids}},
        options={"sampling": {"temperature": 0, "max_tokens": 3, "prompt_logprobs": 2}},
    )
    pieces = [piece async for piece in client.stub.Generate(request)]
    first, *others = (piece.prompt_logprobs for piece in pieces)
    assert len(first) == len(ids)
    assert not any(others)
    assert not first[0].HasField("logprobs")
    for token_id, place in zip(ids[1:], first[1:], strict=True):
        assert place.logprobs.chosen.token_id == token_id
        assert [each.rank for each in place.logprobs.top] == [1, 2]
        assert sum(math.exp(each.logprob) for each in place.logprobs.top) <= 1.001
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(generate=request))
    assert len(whole.prompt_logprobs) == len(ids)
    # The last token has the probability that the model gives it as an answer.
    shorter = llm_pb2.GenerateRequest(
        prompt={"token_ids": {"ids": ids[:-1]}},
        options={"sampling": {"max_tokens": 1, "logprobs": 0, "logit_bias": {ids[-1]: 100}}},
    )
    forced = await client.stub.Complete(llm_pb2.CompleteRequest(generate=shorter))
    (place,) = forced.output.logprobs
    assert place.chosen.token_id == ids[-1]
    assert first[-1].logprobs.chosen.logprob == pytest.approx(place.chosen.logprob, abs=0.05)
