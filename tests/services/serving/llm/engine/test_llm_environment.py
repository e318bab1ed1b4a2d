"""The environment variables that the server sets for vLLM."""

import os
from pathlib import Path

import pytest

from tidegate.serving.llm.engine import environment as of_vllm
from tidegate.serving.llm.engine.environment import (
    engine_environment,
    engine_libraries,
    preloaded,
    prepare_environment,
)

RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"


@pytest.fixture
def environment(monkeypatch):
    """A separate environment."""
    own = {}
    monkeypatch.setattr(os, "environ", own)
    return own


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_on_few_cores_all_cores_compute(cores):
    assert engine_environment(2, cores)[RESERVED] == "0"


def test_on_many_cores_vllm_reserves_its_default():
    assert RESERVED not in engine_environment(2, 5)


def test_the_environment_is_set_for_the_cores_that_the_process_may_use(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    prepare_environment(2)
    assert environment[RESERVED] == "0"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_variables_of_the_operator_stay(environment):
    environment |= {RESERVED: "1", "VLLM_CPU_KVCACHE_SPACE": "7"}
    prepare_environment(2)
    assert environment[RESERVED] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_installed_libraries_that_vllm_advises_are_preloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(of_vllm, "find_library", lambda _: None)
    monkeypatch.setattr(of_vllm, "intel_openmp", lambda: None)
    assert engine_libraries() == {}
    openmp = tmp_path / "libiomp5.so"
    monkeypatch.setattr(of_vllm, "intel_openmp", lambda: openmp)
    assert engine_libraries() == {"LD_PRELOAD": str(openmp)}
    monkeypatch.setattr(of_vllm, "find_library", lambda name: f"lib{name}.so.4")
    assert engine_libraries() == {"LD_PRELOAD": f"libtcmalloc_minimal.so.4:{openmp}"}


def test_a_library_that_the_loader_could_not_find_is_left_out(monkeypatch):
    monkeypatch.setattr(of_vllm, "find_library", lambda _: None)
    monkeypatch.setattr(of_vllm, "intel_openmp", lambda: Path("/home/a b/lib/libiomp5.so"))
    assert engine_libraries() == {}


def test_only_processes_of_the_engine_preload_libraries(environment):
    with preloaded({"LD_PRELOAD": "a.so"}):
        assert environment["LD_PRELOAD"] == "a.so"
    assert "LD_PRELOAD" not in environment


def test_preloads_of_the_operator_stay(environment):
    environment["LD_PRELOAD"] = "b.so"
    with preloaded({"LD_PRELOAD": "a.so"}):
        assert environment["LD_PRELOAD"] == "b.so"
    assert environment["LD_PRELOAD"] == "b.so"
