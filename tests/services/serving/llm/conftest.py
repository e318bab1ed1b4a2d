"""Fixtures: one LLM server for all tests; after a test that ends it, another one starts."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[4]


def _load_support():
    # Tests are no package, so shared code is loaded by its path and imported by its name.
    spec = importlib.util.spec_from_file_location(
        "llm_server", Path(__file__).with_name("llm_server.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["llm_server"] = module
    spec.loader.exec_module(module)
    return module


llm_server = _load_support()


@pytest.fixture(scope="session")
def models():
    """The model repository that `make models` builds."""
    folder = _ROOT / "models"
    if not (folder / "smollm2").is_dir():
        pytest.skip("needs the language model: run `make models`")
    return folder


@pytest.fixture(scope="session")
def tokenizer(models):
    """The tokenizer of SmolLM2, without an engine."""
    transformers = pytest.importorskip("transformers", reason="needs vLLM: install the extra llm")
    return transformers.AutoTokenizer.from_pretrained(models / "smollm2" / "1")


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory):
    """A LoRA adapter for SmolLM2 with random weights, which change every answer."""
    torch = pytest.importorskip("torch", reason="needs vLLM: install the extra llm")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("lora")
    random, rank, weights = torch.Generator().manual_seed(0), 8, {}
    for layer in range(30):
        for module, outputs in (("q_proj", 576), ("v_proj", 192)):
            path = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{path}.lora_A.weight"] = torch.randn(rank, 576, generator=random) * 0.1
            weights[f"{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=random) * 0.1
    save_file(weights, folder / "adapter_model.safetensors")
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "lora_dropout": 0.0,
    }
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    return folder


class _Held:
    server = None


@pytest.fixture(scope="session")
def _held_server():
    held = _Held()
    yield held
    if held.server is not None:
        held.server.stop()


@pytest.fixture
def server(_held_server, models, lora_folder, tmp_path_factory):
    """A loaded server; the same one for all tests, unless one of them ended it."""
    held = _held_server
    if held.server is None or held.server.process.poll() is not None:
        held.server = llm_server.LlmServer.start(
            tmp_path_factory.mktemp("llm"),
            *("--model-repository", str(models)),
            *("--max-running-requests", str(llm_server.MAX_RUNNING)),
            *("--max-waiting-requests", str(llm_server.MAX_WAITING)),
            *("--lora-adapters", f"noise={lora_folder}", "--max-lora-rank", "8"),
            *("--stalled-write-limit-s", "1.5", "--kv-cache-gib", "1"),
        )
        held.server.wait_until_loaded()
    return held.server


@pytest.fixture
async def client(server):
    async with server.client() as client:
        yield client
