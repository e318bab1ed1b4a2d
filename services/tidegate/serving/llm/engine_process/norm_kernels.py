"""The norms of a model on a CPU, each as one of vLLM's compiled kernels.

vLLM for CPUs counts on torch.compile to fuse the small steps between matrix products, and without
it runs each norm as up to ten of PyTorch's operations, which take a good part of the time of a
token. Compiling takes more than a minute at the first start, and a C++ compiler. vLLM's library for
CPUs has the norms as kernels, which vLLM leaves to other platforms; this module offers them to an
engine that does not compile. ``benchmarks/llm/options.py`` tells what they are worth.

They compute in float32 whatever the type of their tensors and round once, at the end, where
PyTorch's operations round twice: results are nearer to the exact ones, and differ in the last bit.
The library has a kernel for SwiGLU, too, which is left alone: it is as exact, but SmolLM2 in
bfloat16 is undecided between "The" and "L'Etoile" when it is asked for the capital of France, and
that last bit would decide for the latter.
"""

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from vllm.config.kernel import IrOpPriorityConfig

__all__ = ["PRIORITIES", "PROVIDER", "priorities", "register"]

PROVIDER: Final = "tidegate"
"""The name of these implementations among those of vLLM's operations."""

PRIORITIES: Final = {name: [PROVIDER, "native"] for name in ("rms_norm", "fused_add_rms_norm")}
"""Which implementation comes first of each; "native" takes the tensors that the kernels do not."""

# The kernels refuse rows that do not fill their vectors, which hold 8 numbers or 16.
_VECTOR: Final = 16
# float32, bfloat16 and float16; vLLM has no others between layers on a CPU.
_ITEM_BYTES: Final = frozenset({4, 2})


def priorities() -> "IrOpPriorityConfig":
    """Says in vLLM's words that these norms come first; vLLM looks them up in this process, too."""
    from vllm.config.kernel import IrOpPriorityConfig

    register()
    return IrOpPriorityConfig(**PRIORITIES)


@cache
def register() -> None:
    """Makes the kernels known to the vLLM of this process."""
    # vLLM compares the annotations with those of its own.
    import torch
    from torch import Tensor
    from vllm import ir
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    kernels = torch.ops._C

    def takes(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> bool:
        del epsilon
        return (
            variance_size is None
            and weight is not None
            and weight.dtype == x.dtype
            and _is_taken(x)
        )

    def takes_two(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> bool:
        same = x_residual.dtype == x.dtype and x_residual.is_contiguous()
        return same and takes(x, weight, epsilon, variance_size)

    @ir.ops.rms_norm.register_impl(
        PROVIDER, supports_args=takes, supported=hasattr(kernels, "rms_norm")
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
        supports_args=takes_two,
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


def _is_taken(x: "torch.Tensor") -> bool:
    return x.shape[-1] % _VECTOR == 0 and x.is_contiguous() and x.itemsize in _ITEM_BYTES
