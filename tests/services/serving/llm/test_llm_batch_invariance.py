"""With --batch-invariant a text does not depend on other requests."""

import asyncio
import os
from types import SimpleNamespace

import pytest
from llm_server import LlmServer

from tidegate.llm.v1 import llm_pb2
from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.engine import launch
from tidegate.serving.llm.postprocessing.parsers import ParserNames
from tidegate.serving.llm.settings import LlmSettings

INVARIANT = "VLLM_BATCH_INVARIANT"


@pytest.fixture(scope="module")
def invariant_server(models, tmp_path_factory):
    server = LlmServer.start(
        tmp_path_factory.mktemp("invariant"),
        *("--model-repository", str(models), "--kv-cache-gib", "1", "--batch-invariant"),
    )
    try:
        server.wait_until_loaded()
        yield server
    finally:
        server.stop()


@pytest.mark.llm
@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.long
async def test_texts_are_the_same_alone_and_beside_others(invariant_server):
    poem = "Write a poem about the sea. " * 8
    asked = [
        *({"text": poem, "seed": seed, "temperature": 1.0} for seed in range(3)),
        *({"text": each, "temperature": 0} for each in (poem, "What is a transistor?")),
    ]
    async with invariant_server.client() as client:
        (model,) = (await client.stub.ListModels(llm_pb2.ListModelsRequest())).models
        assert model.batch_invariant

        async def write(text, **sampling):
            answer = await client.answer(text, max_tokens=32, **sampling)
            return answer.output.text

        alone = [await write(**each) for each in asked]
        assert len(set(alone)) == len(asked)
        assert await asyncio.gather(*(write(**each) for each in asked)) == alone


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(os.environ, INVARIANT, raising=False)
    return os.environ


def settings(tmp_path, **fields):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return LlmSettings(model_path=tmp_path, **fields)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("asked", [True, False])
def test_on_a_cpu_the_engine_runs_one_request_at_a_time(environment, monkeypatch, tmp_path, asked):
    pytest.importorskip("vllm", reason="needs vLLM: install the extra llm")
    monkeypatch.setattr(
        "vllm.engine.arg_utils.AsyncEngineArgs", lambda **given: SimpleNamespace(**given)
    )
    given = settings(tmp_path, batch_invariant=asked, max_running_requests=8)
    launch._set_batch_invariance(given, on_cpu=True)
    arguments = launch._engine_arguments(given, tmp_path, "model", ParserNames(), on_cpu=True)
    assert arguments.max_num_seqs == (1 if asked else 8)
    assert getattr(arguments, "enable_prefix_caching", None) is (False if asked else None)
    assert INVARIANT not in environment


def test_on_a_gpu_vllms_mode_is_turned_on(environment, tmp_path):
    launch._set_batch_invariance(settings(tmp_path), on_cpu=False)
    assert INVARIANT not in environment
    launch._set_batch_invariance(settings(tmp_path, batch_invariant=True), on_cpu=False)
    assert environment[INVARIANT] == "1"


def test_vllms_mode_is_refused_on_a_cpu_whose_engine_would_die_of_it(environment, tmp_path):
    environment[INVARIANT] = "1"
    with pytest.raises(StartupError, match="--batch-invariant"):
        launch._set_batch_invariance(settings(tmp_path), on_cpu=True)
    environment[INVARIANT] = "0"
    launch._set_batch_invariance(settings(tmp_path), on_cpu=True)
