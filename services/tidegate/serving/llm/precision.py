"""The type that the engine computes in, where the operator leaves it to the server."""

import json
import platform
from pathlib import Path
from typing import Final

import psutil

from tidegate.serving.llm.settings import Precision

__all__ = ["computing_type"]

_X86: Final = frozenset({"x86_64", "amd64"})
# Of 16-bit numbers these know nothing; see torch.backends.cpu.get_cpu_capability.
_WITHOUT_16_BITS: Final = frozenset({"DEFAULT", "AVX2"})
# The weights are read beside what is made of them.
_SHARE_OF_MEMORY: Final = 0.5


def computing_type(asked: Precision, model: Path) -> Precision:
    """Decides what vLLM computes in on a CPU.

    An x86 CPU without AVX-512 turns each 16-bit number into a 32-bit one before it computes, time
    and again, which makes it several times slower than weights of 32 bits do
    (``benchmarks/llm/options.py`` measures it). So those are taken where memory holds them.

    Args:
        asked: By the operator; anything but ``auto`` stands.
        model: The model's folder.

    Returns:
        What to tell vLLM, for which ``auto`` is the model's own.
    """
    import torch

    slow = (
        platform.machine().lower() in _X86
        and torch.backends.cpu.get_cpu_capability() in _WITHOUT_16_BITS
    )
    if asked is not Precision.AUTO or not slow or not _has_plain_weights(model):
        return asked
    weights_bytes = sum(each.stat().st_size for each in model.glob("*.safetensors"))
    # Weights of 16 bits in their files have twice the size in memory.
    fits = 2 * weights_bytes <= _SHARE_OF_MEMORY * psutil.virtual_memory().available
    return Precision.FLOAT32 if fits else asked


def _has_plain_weights(model: Path) -> bool:
    """Whether they can be of any type: for quantized ones vLLM has kernels that decide it."""
    config = model / "config.json"
    return config.is_file() and "quantization_config" not in json.loads(config.read_text())
