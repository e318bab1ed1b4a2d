"""The data type that the server chooses when the operator leaves it to the server."""

import json
import platform
from types import SimpleNamespace

import psutil
import pytest

from tidegate.serving.llm.engine.launch import compute_dtype
from tidegate.serving.llm.settings import Precision

WEIGHTS_BYTES = 1000


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    for part in "ab":
        (tmp_path / f"{part}.safetensors").write_bytes(bytes(WEIGHTS_BYTES // 2))
    return tmp_path


@pytest.fixture
def machine(monkeypatch):
    """Sets the CPU and the memory; first an old x86 CPU with much memory."""
    torch = pytest.importorskip("torch", reason="needs vLLM: install the extra llm")

    def say(capability="AVX2", kind="x86_64", free_bytes=10**9):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(platform, "machine", lambda: kind)
        memory = SimpleNamespace(available=free_bytes)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    say()
    return say


def test_a_cpu_that_is_slow_with_16_bits_computes_in_float32(model, machine):
    assert compute_dtype(Precision.AUTO, model) is Precision.FLOAT32


@pytest.mark.parametrize(
    "other",
    [{"capability": "AVX512"}, {"capability": "AMX"}, {"capability": "DEFAULT", "kind": "aarch64"}],
)
def test_other_cpus_compute_in_the_models_own_type(model, machine, other):
    machine(**other)
    assert compute_dtype(Precision.AUTO, model) is Precision.AUTO


@pytest.mark.parametrize("asked", [each for each in Precision if each is not Precision.AUTO])
def test_the_choice_of_the_operator_is_final(model, machine, asked):
    assert compute_dtype(asked, model) is asked


@pytest.mark.parametrize(
    ("free_bytes", "taken"),
    [(4 * WEIGHTS_BYTES, Precision.FLOAT32), (4 * WEIGHTS_BYTES - 1, Precision.AUTO)],
)
def test_weights_twice_as_large_must_fit_into_half_of_the_free_memory(
    model, machine, free_bytes, taken
):
    machine(free_bytes=free_bytes)
    assert compute_dtype(Precision.AUTO, model) is taken


def test_quantized_weights_have_kernels_of_their_own(model, machine):
    (model / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    assert compute_dtype(Precision.AUTO, model) is Precision.AUTO


def test_a_model_without_a_configuration_is_left_to_vllm(model, machine):
    (model / "config.json").unlink()
    assert compute_dtype(Precision.AUTO, model) is Precision.AUTO
