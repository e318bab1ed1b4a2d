"""What the server sets in the environment for vLLM."""

import os

import pytest

from tidegate.serving.llm.environment import engine_environment, prepare_environment

RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"


@pytest.fixture
def environment(monkeypatch):
    """An environment of its own."""
    own = {}
    monkeypatch.setattr(os, "environ", own)
    return own


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_few_cores_all_compute(cores):
    assert engine_environment(2, cores)[RESERVED] == "0"


def test_of_many_cores_vllm_keeps_what_it_wants():
    assert RESERVED not in engine_environment(2, 5)


def test_the_environment_is_prepared_for_the_cores_that_may_be_used(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    prepare_environment(2)
    assert environment[RESERVED] == "0"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_what_an_operator_has_set_stays(environment):
    environment |= {RESERVED: "1", "VLLM_CPU_KVCACHE_SPACE": "7"}
    prepare_environment(2)
    assert environment[RESERVED] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7"
