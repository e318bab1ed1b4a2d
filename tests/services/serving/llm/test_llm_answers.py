"""Answers of the real model over gRPC, on vLLM."""

import asyncio
import json
import math
import re

import grpc
import pytest
from llm_server import CONTEXT_TOKENS, chat, fields, refusal

from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.engine.launch import compute_dtype
from tidegate.serving.llm.settings import Precision

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]

TOKYO = "What is the capital of Japan?"


def text_of(pieces):
    return "".join(each.delta.text for each in pieces)


def ids_of(pieces):
    return [token_id for each in pieces for token_id in each.delta.token_ids]


async def test_an_answer_is_streamed(client):
    pieces = await client.stream(TOKYO, temperature=0)
    assert "Tokyo" in text_of(pieces)
    assert len(pieces) > 1
    assert [each.HasField("finish") for each in pieces] == [False] * (len(pieces) - 1) + [True]
    finish = pieces[-1].finish
    assert finish.reason == llm_pb2.FINISH_REASON_STOP
    assert finish.usage.completion_tokens == len(ids_of(pieces))


async def test_the_messages_of_a_stream_make_the_whole_answer(client):
    for question in (TOKYO, "Say something with emoji: 🙂🎉"):
        pieces = await client.stream(question, temperature=0)
        whole = await client.answer(question, temperature=0)
        assert text_of(pieces) == whole.output.text
        assert ids_of(pieces) == list(whole.output.token_ids)
        assert pieces[-1].finish.usage.prompt_tokens == whole.finish.usage.prompt_tokens


async def test_characters_are_never_split_over_messages(client):
    request = llm_pb2.GenerateRequest(
        prompt={"text": "🙂🎉👍🏽 日本語 🙂🎉👍🏽 日本語 🙂🎉👍🏽 日本語 🙂🎉"},
        options={"sampling": {"temperature": 0, "max_tokens": 40, "ignore_end_of_text": True}},
    )
    pieces = [piece async for piece in client.stub.Generate(request)]
    text = text_of(pieces)
    assert any(ord(character) > 0xFFFF for character in text)
    assert "\ufffd" not in text


async def test_trailers_tell_an_empty_and_a_truncated_answer(client):
    async def trailers(call):
        assert [piece async for piece in call]
        found = dict(await call.trailing_metadata())
        names = ("finish", "tokens-out", "chars-out", "ttft-ms")
        return [found.get(f"tidegate-{name}") for name in names]

    first, *_ = ids_of(await client.stream(TOKYO, temperature=0))
    empty = client.stub.Chat(chat(TOKYO, temperature=0, stop_token_ids=[first]))
    finish, tokens, characters, first_token_ms = await trailers(empty)
    # The token that ends the answer counts as one of its tokens.
    assert (finish, tokens, characters) == ("stop", "1", "0")
    assert float(first_token_ms) > 0
    truncated = client.stub.Chat(chat(TOKYO, temperature=0, max_tokens=2))
    finish, tokens, characters, _ = await trailers(truncated)
    assert (finish, tokens) == ("length", "2")
    assert int(characters) > 0


async def test_timings_trailers_and_metrics_agree(server, client):
    before = await server.metric("tidegate_llm_tokens_total", kind="completion")
    call = client.stub.Chat(chat(TOKYO, temperature=0))
    pieces = [piece async for piece in call]
    finish, trailers = pieces[-1].finish, dict(await call.trailing_metadata())
    timings = finish.timings
    first = timings.time_to_first_token.ToNanoseconds()
    assert 0 < first < timings.total.ToNanoseconds()
    assert timings.queue.ToNanoseconds() < first
    assert timings.mean_inter_token.ToNanoseconds() > 0
    assert timings.max_inter_message.ToNanoseconds() > 0
    assert trailers["tidegate-model"] == "smollm2"
    assert trailers["tidegate-model-version"]
    assert trailers["tidegate-finish"] == "stop"
    assert int(trailers["tidegate-tokens-in"]) == finish.usage.prompt_tokens
    assert int(trailers["tidegate-tokens-out"]) == finish.usage.completion_tokens
    assert float(trailers["tidegate-ttft-ms"]) == pytest.approx(first / 1e6, abs=0.01)
    assert int(trailers["tidegate-chars-out"]) == len(text_of(pieces))
    assert "tidegate-queue-ms" in trailers
    after = await server.metric("tidegate_llm_tokens_total", kind="completion")
    assert after - before == finish.usage.completion_tokens
    assert await server.metric("vllm:generation_tokens_total") > 0


async def test_the_same_seed_gives_the_same_text_and_another_seed_another(client):
    async def write(seed):
        answer = await client.answer("Write a poem.", seed=seed, temperature=1.5, max_tokens=8)
        return answer.output.text

    texts = {seed: await write(seed) for seed in (-(2**63), 7, 2**63 - 2)}
    for seed, text in texts.items():
        assert await write(seed) == text
    assert len(set(texts.values())) == len(texts)


async def test_a_stop_string_ends_the_answer_and_is_left_out_unless_included(client):
    whole = (await client.answer(TOKYO, temperature=0)).output.text
    stopped = await client.answer(TOKYO, temperature=0, stop=["zzz", " Tokyo"])
    assert stopped.output.text == whole.partition(" Tokyo")[0]
    assert stopped.finish.reason == llm_pb2.FINISH_REASON_STOP
    assert stopped.finish.stop_string == " Tokyo"
    kept = await client.stream(TOKYO, temperature=0, stop=[" Tokyo"], include_stop_string=True)
    assert text_of(kept) == whole.partition(" Tokyo")[0] + " Tokyo"


async def test_a_stop_token_ends_the_answer(client):
    token_id = (await client.answer(TOKYO, temperature=0)).output.token_ids[3]
    stopped = await client.answer(TOKYO, temperature=0, stop_token_ids=[token_id])
    assert len(stopped.output.token_ids) == 4
    assert stopped.finish.stop_token_id == token_id


async def test_max_min_and_ignored_end_bound_the_answer(client):
    short = await client.answer(TOKYO, temperature=0, max_tokens=3)
    assert len(short.output.token_ids) == 3
    assert short.finish.reason == llm_pb2.FINISH_REASON_LENGTH
    long = await client.answer(TOKYO, temperature=0, min_tokens=20, max_tokens=24)
    assert len(long.output.token_ids) >= 20
    full = await client.answer(TOKYO, temperature=0, ignore_end_of_text=True, max_tokens=24)
    assert len(full.output.token_ids) == 24


async def test_logprobs_are_those_of_a_distribution(client):
    pieces = await client.stream(TOKYO, temperature=0, logprobs=5, max_tokens=8)
    places = [place for each in pieces for place in each.delta.logprobs]
    assert [place.chosen.token_id for place in places] == ids_of(pieces)
    for place in places:
        assert place.chosen.rank == 1
        assert [each.rank for each in place.top] == [1, 2, 3, 4, 5]
        values = [each.logprob for each in place.top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.001
        assert place.top[0] == place.chosen
    only_chosen = await client.answer(TOKYO, temperature=1.8, logprobs=0, max_tokens=4)
    assert [len(place.top) for place in only_chosen.output.logprobs] == [0] * 4


async def test_logit_bias_forces_a_token(client):
    word = await client.stub.Tokenize(llm_pb2.TokenizeRequest(text=" cat"))
    (token_id,) = word.token_ids
    forced = await client.answer(TOKYO, temperature=0, logit_bias={token_id: 100}, max_tokens=3)
    assert list(forced.output.token_ids) == [token_id] * 3


async def test_a_json_schema_is_kept(client):
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "size": {"type": "integer", "minimum": 0, "maximum": 9},
            "kind": {"enum": ["town", "village"]},
        },
        "required": ["city", "size", "kind"],
        "additionalProperties": False,
    }
    for seed in range(3):
        pieces = await client.stream(
            TOKYO, seed=seed, constraint={"json_schema": json.dumps(schema)}, max_tokens=80
        )
        value = json.loads(text_of(pieces))
        assert set(value) == {"city", "size", "kind"}
        assert isinstance(value["city"], str)
        assert len(value["city"]) <= 12
        assert value["size"] in range(10)
        assert value["kind"] in {"town", "village"}


async def test_a_regex_is_matched_and_a_choice_is_made(client):
    pattern = r"[A-Z][a-z]{2,8} is [0-9]{3}"
    answers = await asyncio.gather(
        *(client.answer(TOKYO, seed=seed, constraint={"regex": pattern}) for seed in range(4))
    )
    for answer in answers:
        assert re.fullmatch(pattern, answer.output.text)
    options = ["red", "green 🙂", 'a "quoted" one']
    answers = await asyncio.gather(
        *(
            client.answer(TOKYO, seed=seed, constraint={"choice": {"options": options}})
            for seed in range(4)
        )
    )
    assert {answer.output.text for answer in answers} <= set(options)


@pytest.mark.parametrize(
    ("constraint", "field"),
    [
        ({"regex": "("}, "regex"),
        pytest.param({"regex": r"[^\s\S]"}, "regex", marks=pytest.mark.long),
        pytest.param({"json_schema": "5"}, "json_schema", marks=pytest.mark.long),
        pytest.param(
            {"json_schema": '{"type": "array", "uniqueItems": true}'},
            "json_schema",
            marks=pytest.mark.long,
        ),
        ({"json_schema": '{"type": "array", "minItems": 1000000000}'}, "json_schema"),
    ],
)
async def test_a_bad_constraint_is_refused_and_harms_no_other_request(client, constraint, field):
    other = asyncio.create_task(
        client.answer("Count.", max_tokens=32, ignore_end_of_text=True, temperature=0)
    )
    code, details = await refusal(client.stub.Chat(chat(TOKYO, constraint=constraint)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == [f"options.sampling.constraint.{field}"]
    assert len((await other).output.token_ids) == 32


async def test_a_constraint_that_explodes_later_fails_only_its_own_request(client):
    other = asyncio.create_task(
        client.answer("Count.", max_tokens=32, ignore_end_of_text=True, temperature=0)
    )
    request = chat(TOKYO, constraint={"regex": "((a{1000}){1000}){1000}"}, max_tokens=16)
    code, details = await refusal(client.stub.Chat(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["ErrorInfo"].reason == "BAD_CONSTRAINT"
    assert len((await other).output.token_ids) == 32


async def test_a_prompt_beyond_the_context_is_refused_with_count_and_limit(client):
    prompt = llm_pb2.Prompt(token_ids={"ids": [1] * CONTEXT_TOKENS})
    code, details = await refusal(client.stub.Generate(llm_pb2.GenerateRequest(prompt=prompt)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == ["prompt.token_ids"]
    assert dict(details["ErrorInfo"].metadata) == {
        "tokens": str(CONTEXT_TOKENS),
        "limit": str(CONTEXT_TOKENS - 1),
    }
    for text in ("word " * 2000, "x" * 1_000_000):
        code, details = await refusal(client.stub.Chat(chat(text)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details["ErrorInfo"].reason == "PROMPT_TOO_LONG"


async def test_the_context_bounds_an_answer_without_max_tokens(client):
    ids = [504] * (CONTEXT_TOKENS - 5)
    request = llm_pb2.GenerateRequest(
        prompt={"token_ids": {"ids": ids}}, options={"sampling": {"ignore_end_of_text": True}}
    )
    pieces = [piece async for piece in client.stub.Generate(request)]
    assert len(ids_of(pieces)) == 5
    assert pieces[-1].finish.reason == llm_pb2.FINISH_REASON_LENGTH
    request.options.sampling.min_tokens = 6
    code, details = await refusal(client.stub.Generate(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == ["options.sampling.min_tokens"]


async def test_wrong_requests_name_every_field(client):
    request = llm_pb2.CompleteRequest(chat=chat(TOKYO, temperature=3, top_p=0))
    code, details = await refusal(client.stub.Complete(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == [
        "chat.options.sampling.temperature",
        "chat.options.sampling.top_p",
    ]
    assert details["ErrorInfo"].domain == "tidegate"


async def test_an_unknown_model_or_adapter_is_not_found(client):
    for options in ({"model": "other"}, {"lora_adapter": "other"}):
        request = llm_pb2.GenerateRequest(prompt={"text": "Hi"}, options=options)
        code, _ = await refusal(client.stub.Generate(request))
        assert code is grpc.StatusCode.NOT_FOUND


async def test_a_lora_adapter_changes_the_answer(client):
    plain = await client.answer(TOKYO, temperature=0)
    noisy = await client.answer(TOKYO, temperature=0, adapter="noise")
    assert "Tokyo" in plain.output.text
    assert noisy.output.text != plain.output.text


async def test_the_last_message_of_the_assistant_is_continued(client):
    request = chat("Where do you live?", temperature=0, max_tokens=4)
    request.messages.append(
        llm_pb2.Message(role=llm_pb2.ROLE_ASSISTANT, content="I live in the capital of Spain,")
    )
    request.continue_last_message = True
    answer = await client.stub.Complete(llm_pb2.CompleteRequest(chat=request))
    assert "Madrid" in answer.output.text


async def test_tokenizing_and_detokenizing_are_inverse(client):
    text = "Hello 🙂 wörld"
    tokenized = await client.stub.Tokenize(llm_pb2.TokenizeRequest(text=text))
    assert len(tokenized.tokens) == len(tokenized.token_ids) > 3
    assert tokenized.max_context_tokens == CONTEXT_TOKENS
    request = llm_pb2.DetokenizeRequest(token_ids=tokenized.token_ids)
    assert (await client.stub.Detokenize(request)).text == text
    code, details = await refusal(
        client.stub.Detokenize(llm_pb2.DetokenizeRequest(token_ids=[1, 49152]))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields(details) == ["token_ids[1]"]


async def test_a_conversation_is_tokenized_as_chat_counts_it(client):
    messages = chat(TOKYO).messages
    tokenized = await client.stub.Tokenize(
        llm_pb2.TokenizeRequest(conversation={"messages": messages})
    )
    answer = await client.answer(TOKYO, max_tokens=1)
    assert len(tokenized.token_ids) == answer.finish.usage.prompt_tokens
    assert tokenized.tokens[0] == "<|im_start|>"


async def test_a_generating_model_does_not_embed(client):
    call = client.stub.Embed(llm_pb2.EmbedRequest(inputs=[{"text": "Hi"}]))
    code, details = await refusal(call)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details["ErrorInfo"].reason == "NOT_AN_EMBEDDING_MODEL"


async def test_the_model_is_described(client, models):
    (model,) = (await client.stub.ListModels(llm_pb2.ListModelsRequest())).models
    assert (model.name, model.ready) == ("smollm2", True)
    assert model.kind == llm_pb2.MODEL_KIND_GENERATE
    assert model.engine.startswith("vllm ")
    taken = compute_dtype(Precision.AUTO, models / "smollm2" / "1")
    assert model.precision == ("float32" if taken is Precision.FLOAT32 else "bfloat16")
    assert model.max_context_tokens == CONTEXT_TOKENS
    assert model.vocabulary_size == 49152
    assert list(model.lora_adapters) == ["noise"]
    assert model.HasField("loaded_at")
