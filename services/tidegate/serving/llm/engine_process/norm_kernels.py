"""Computes the norms of a model on a CPU with vLLM's compiled kernels.

vLLM for CPUs relies on torch.compile to fuse the small steps between matrix products. Without it,
each norm runs as up to ten PyTorch operations, which take a good part of the time of a token.
Compiling takes more than a minute at the first start, and needs a C++ compiler. vLLM's library for
CPUs has the norms as kernels, but vLLM uses them only on other platforms. This module registers
them for an engine that does not compile. ``benchmarks/llm/options.py`` measures the gain.

The kernels compute in float32 for every tensor type and round once, at the end. PyTorch's
operations round twice. So the results are nearer to the exact ones, and differ in the last bit.

The library also has a kernel for SwiGLU, which this module does not use. It is as exact. But when
SmolLM2 in bfloat16 is asked for the capital of France, "The" and "L'Etoile" are about equally
likely, and that last bit would select the latter.
"""

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from vllm.config.kernel import IrOpPriorityConfig

__all__ = ["PRIORITIES", "PROVIDER", "priorities", "register"]

PROVIDER: Final = "tidegate"
"""Name of these implementations in vLLM's registry of operations."""

PRIORITIES: Final = {name: [PROVIDER, "native"] for name in ("rms_norm", "fused_add_rms_norm")}
"""Priority of implementations; "native" takes the tensors that the kernels do not support."""

# The kernels refuse rows that do not fill their vectors of 8 or 16 numbers.
_VECTOR: Final = 16
# float32, bfloat16 and float16; vLLM uses no other type between layers on a CPU.
_ITEM_BYTES: Final = frozenset({4, 2})


def priorities() -> "IrOpPriorityConfig":
    """Returns vLLM's configuration that prefers these norms."""
    from vllm.config.kernel import IrOpPriorityConfig

    # vLLM also looks the implementations up in this process.
    register()
    return IrOpPriorityConfig(**PRIORITIES)


@cache
def register() -> None:
    """Registers the kernels with the vLLM of this process."""
    # vLLM compares the annotations with those of its own implementations.
    import torch
    from torch import Tensor
    from vllm import ir
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    kernels = torch.ops._C

    def supports(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> bool:
        del epsilon
        return (
            variance_size is None
            and weight is not None
            and weight.dtype == x.dtype
            and _is_supported(x)
        )

    def supports_residual(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> bool:
        same = x_residual.dtype == x.dtype and x_residual.is_contiguous()
        return same and supports(x, weight, epsilon, variance_size)

    @ir.ops.rms_norm.register_impl(
        PROVIDER, supports_args=supports, supported=hasattr(kernels, "rms_norm")
    )
    def rms_norm(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        del variance_size
        normalized = torch.empty_like(x)
        kernels.rms_norm(normalized, x, weight, epsilon)
        return normalized

    @ir.ops.fused_add_rms_norm.register_impl(
        PROVIDER,
        supports_args=supports_residual,
        supported=hasattr(kernels, "fused_add_rms_norm"),
        inplace=True,
    )
    def fused_add_rms_norm(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        del variance_size
        kernels.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual


def _is_supported(x: "torch.Tensor") -> bool:
    return x.shape[-1] % _VECTOR == 0 and x.is_contiguous() and x.itemsize in _ITEM_BYTES
