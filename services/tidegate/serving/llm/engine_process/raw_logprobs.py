"""Makes vLLM return the model's own log probabilities, also under a constraint.

vLLM computes its ``raw_logprobs`` before a request's bias, penalties and temperature, but after the
mask of its constraint. Forbidden tokens then have no log probability, and those of the other
tokens are too high. So the meaning of a log probability would depend on the constraint. This
module computes them before the mask.

vLLM's model runner masks the logits in place and passes the same tensor to its sampler. If the
batch needs log probabilities, this module keeps a copy of the unmasked logits as an attribute of
that tensor.
"""

import inspect
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["register"]

_UNMASKED: Final = "tidegate_unmasked"
_MASK_PARAMETERS: Final = ["scheduler_output", "grammar_output", "input_batch", "logits"]


@cache
def register() -> None:
    """Replaces vLLM's functions in this process, so that log probabilities precede the mask.

    Raises:
        RuntimeError: vLLM's internals differ from those that this module replaces.
    """
    from vllm.v1.sample.sampler import Sampler

    gpu_model_runner: Any = import_module("vllm.v1.worker.gpu_model_runner")
    mask, log_softmax = gpu_model_runner.apply_grammar_bitmask, Sampler.compute_logprobs
    if (
        list(inspect.signature(mask).parameters) != _MASK_PARAMETERS
        or list(inspect.signature(log_softmax).parameters) != ["logits"]
        or "self.compute_logprobs(logits)" not in inspect.getsource(Sampler.forward)
    ):
        raise RuntimeError("this vLLM applies constraints in another way than vLLM 0.32")

    def apply_grammar_bitmask(
        scheduler_output: Any, grammar_output: Any, input_batch: Any, logits: "Tensor"
    ) -> None:
        if input_batch.sampling_metadata.max_num_logprobs is not None:
            setattr(logits, _UNMASKED, logits.clone())
        mask(scheduler_output, grammar_output, input_batch, logits)

    def compute_logprobs(logits: "Tensor") -> "Tensor":
        return log_softmax(getattr(logits, _UNMASKED, logits))

    gpu_model_runner.apply_grammar_bitmask = apply_grammar_bitmask
    Sampler.compute_logprobs = staticmethod(compute_logprobs)  # type: ignore[method-assign]
