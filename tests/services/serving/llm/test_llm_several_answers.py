"""Several answers to one prompt, on the real model."""

import grpc
import pytest
from llm_server import MAX_RUNNING, MAX_WAITING, chat, fields, refusal

from tidegate.llm.v1 import llm_pb2

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]

TOKYO = "What is the capital of Japan?"
ENDLESS = {"ignore_end_of_text": True, "max_tokens": 900}


async def test_the_messages_of_several_answers_name_their_answer(server, client):
    names = (
        ("tidegate_llm_tokens_total", {"kind": "prompt"}),
        ("tidegate_llm_tokens_total", {"kind": "completion"}),
        ("tidegate_llm_finished_total", {}),
        ("tidegate_llm_time_to_first_token_seconds_count", {}),
    )
    before = [await server.metric(name, **labels) for name, labels in names]
    call = client.stub.Chat(chat(TOKYO, temperature=1, seed=5, answers=3, max_tokens=12))
    pieces = [piece async for piece in call]
    trailers = dict(await call.trailing_metadata())
    by_answer = [[each for each in pieces if each.answer == answer] for answer in range(3)]
    tokens = [sum(len(each.delta.token_ids) for each in mine) for mine in by_answer]
    for mine, count in zip(by_answer, tokens, strict=True):
        assert [each.HasField("finish") for each in mine] == [False] * (len(mine) - 1) + [True]
        assert mine[-1].finish.usage.completion_tokens == count
        assert mine[-1].finish.timings.time_to_first_token.ToNanoseconds() > 0
    (prompt,) = {mine[-1].finish.usage.prompt_tokens for mine in by_answer}
    assert int(trailers["tidegate-tokens-out"]) == sum(tokens)
    assert int(trailers["tidegate-tokens-in"]) == prompt
    after = [await server.metric(name, **labels) for name, labels in names]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert grown == [prompt, sum(tokens), 3, 1]


async def test_answers_have_the_seeds_after_the_first(client):
    asked = {"temperature": 1.5, "max_tokens": 8}
    request = chat("Write a poem.", seed=7, answers=3, **asked)
    whole = await client.stub.Complete(llm_pb2.CompleteRequest(chat=request))
    texts = [whole.output.text, *(each.output.text for each in whole.further_answers)]
    assert len(set(texts)) == 3
    finishes = [whole.finish, *(each.finish for each in whole.further_answers)]
    assert all(each.usage.completion_tokens <= 8 for each in finishes)
    # Batches of another size round differently, so later tokens may differ; the first has the same
    # probabilities up to rounding.
    alone = await client.answer("Write a poem.", seed=8, **asked)
    first = whole.further_answers[0].output.token_ids[0]
    assert alone.output.token_ids[0] == first


@pytest.mark.parametrize("method", ["Chat", "Complete"])
async def test_a_client_that_leaves_frees_all_answers(server, client, method):
    before = await server.metric("tidegate_llm_cancelled_total", cause="client")
    request = chat("Count.", answers=4, temperature=1, **ENDLESS)
    if method == "Complete":
        request = llm_pb2.CompleteRequest(chat=request)
    call = getattr(client.stub, method)(request)
    if method == "Chat":
        await anext(aiter(call))
    await server.until_metric("vllm:num_requests_running", 4)
    call.cancel()
    await server.until_idle()
    await server.until_metric("tidegate_llm_cancelled_total", before + 4, cause="client")
    await server.until_metric("tidegate_llm_in_flight_requests", 0)


async def test_a_client_that_does_not_read_frees_all_answers(server):
    small = {"grpc.http2.lookahead_bytes": 1, "grpc.http2.bdp_probe": 0}
    async with server.client(**small) as client:
        request = chat("Count.", answers=4, temperature=1, logprobs=20, **ENDLESS)
        call = client.stub.Chat(request)
        assert (await call.read()).delta.token_ids
        await server.until_metric("vllm:num_requests_running", 4)
        await server.until_idle()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_to_the_end(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_each_answer_takes_a_slot(server, client):
    capacity = MAX_RUNNING + MAX_WAITING
    calls = [
        client.stub.Chat(chat("Count.", answers=capacity // 2, temperature=1, **ENDLESS))
        for _ in range(2)
    ]
    await server.until_metric("tidegate_llm_in_flight_requests", capacity)
    code, details = await refusal(client.answer("Hi"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details["ErrorInfo"].reason == "QUEUE_FULL"
    for call in calls:
        call.cancel()
    await server.until_idle()
    assert await client.answer("Hi", max_tokens=1)


async def test_only_sampled_answers_can_be_several(client):
    code, details = await refusal(client.stub.Chat(chat(TOKYO, answers=2, temperature=0)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == ["options.sampling.answers"]


async def test_a_server_with_adapters_has_no_log_probabilities_of_prompts(client):
    request = llm_pb2.GenerateRequest(
        prompt={"text": "Hi"}, options={"sampling": {"prompt_logprobs": 0}}
    )
    code, details = await refusal(client.stub.Generate(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == ["options.sampling.prompt_logprobs"]


async def _read_to_the_end(call):
    while await call.read() is not grpc.aio.EOF:
        pass
