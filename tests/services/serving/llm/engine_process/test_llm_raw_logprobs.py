"""Log probabilities precede the mask of a constraint; with vLLM's own functions."""

from types import SimpleNamespace

import pytest

from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.engine.launch import TESTED_VLLM, check_vllm

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.fixture
def engine(monkeypatch):
    """The model runner and sampler of vLLM, restored after the test."""
    pytest.importorskip("vllm", reason="needs vLLM: install the extra llm")
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker import gpu_model_runner

    from tidegate.serving.llm.engine_process import raw_logprobs

    mask = gpu_model_runner.apply_grammar_bitmask
    # Set here, so that monkeypatch restores what `register` sets.
    monkeypatch.setattr(gpu_model_runner, "apply_grammar_bitmask", mask)
    monkeypatch.setattr(Sampler, "compute_logprobs", staticmethod(Sampler.compute_logprobs))
    register = raw_logprobs.register.__wrapped__
    return SimpleNamespace(runner=gpu_model_runner, sampler=Sampler, register=register)


@pytest.mark.parametrize("wants_logprobs", [True, False])
def test_log_probabilities_are_those_before_the_mask(engine, wants_logprobs):
    import numpy as np
    import torch

    engine.register()
    logits = torch.arange(64, dtype=torch.float32).reshape(2, 32)
    expected = logits.log_softmax(dim=-1)
    # The second request may only choose token 3.
    output = SimpleNamespace(
        structured_output_request_ids=["b"], grammar_bitmask=np.array([[1 << 3]], dtype=np.int32)
    )
    metadata = SimpleNamespace(max_num_logprobs=5 if wants_logprobs else None)
    batch = SimpleNamespace(req_ids=["a", "b"], sampling_metadata=metadata)
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens={})
    engine.runner.apply_grammar_bitmask(scheduled, output, batch, logits)
    assert logits[0].isfinite().all()
    assert logits[1].isfinite().nonzero().flatten().tolist() == [3]
    found = engine.sampler.compute_logprobs(logits)
    assert found.equal(expected) is wants_logprobs
    assert engine.sampler.compute_logprobs(logits.clone())[1, 3] == 0


def test_an_engine_with_other_internals_is_refused(engine, monkeypatch):
    monkeypatch.setattr(engine.runner, "apply_grammar_bitmask", lambda logits: None)
    with pytest.raises(RuntimeError, match="in another way than vLLM"):
        engine.register()


@pytest.mark.parametrize("version", [TESTED_VLLM, f"{TESTED_VLLM}.0", f"{TESTED_VLLM}.1+cpu"])
def test_the_tested_release_of_vllm_is_accepted(version):
    check_vllm(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0", "0.320.1"])
def test_another_vllm_is_refused(version):
    with pytest.raises(StartupError, match="replaces internals"):
        check_vllm(version)
