"""Embeddings from a server with the pooling runner."""

import math

import grpc
import pytest
from llm_server import LlmServer, chat, fields, refusal

from tidegate.llm.v1 import llm_pb2

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def embedding_server(models, tmp_path_factory):
    server = LlmServer.start(
        tmp_path_factory.mktemp("embed"), "--model-repository", str(models), "--runner", "pooling"
    )
    try:
        server.wait_until_loaded()
        yield server
    finally:
        server.stop()


async def test_a_pooling_server_embeds_and_does_not_generate(embedding_server):
    async with embedding_server.client() as client:
        texts = ["A cat sleeps.", "A kitten is asleep.", "Interest rates rose by 2 %."]
        inputs = [{"text": text} for text in texts]
        tokenized = await client.stub.Tokenize(llm_pb2.TokenizeRequest(text=texts[0]))
        inputs.append({"token_ids": {"ids": tokenized.token_ids}})
        answer = await client.stub.Embed(llm_pb2.EmbedRequest(inputs=inputs))
        vectors = [list(each.values) for each in answer.embeddings]
        assert len(vectors) == 4
        for vector in vectors:
            assert len(vector) == 576
            assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)

        def likeness(a, b):
            return sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))

        assert likeness(0, 3) == pytest.approx(1, abs=1e-3)
        assert likeness(0, 1) > likeness(0, 2)
        assert answer.usage.prompt_tokens > len(tokenized.token_ids)
        assert answer.usage.completion_tokens == 0

        code, details = await refusal(client.stub.Embed(llm_pb2.EmbedRequest()))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert fields(details) == ["inputs"]
        code, details = await refusal(client.stub.Chat(chat("Hi")))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert details["ErrorInfo"].reason == "NOT_A_GENERATING_MODEL"
        (model,) = (await client.stub.ListModels(llm_pb2.ListModelsRequest())).models
        assert model.kind == llm_pb2.MODEL_KIND_EMBED
