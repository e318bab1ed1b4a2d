"""Starts vLLM's engine, with the options and in the processes that suit the machine.

On a CPU, vLLM computes in a process that its engine starts, so that OpenMP finds its settings when
that process loads it; the engine's scheduler watches that process from a core that is kept for it.
Where no core is kept (see `environment`), the engine's own process is
given these settings, and computes: as fast, with one process less that has to load vLLM, which
takes many seconds and hundreds of megabytes.
"""

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import psutil
import structlog

from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.engine.environment import engine_libraries, has_few_cores, preloaded
from tidegate.serving.llm.engine_process import norm_kernels
from tidegate.serving.llm.engine_process.plugin import HAS_KERNELS, HAS_RAW_LOGPROBS, PLUGIN
from tidegate.serving.llm.settings import LlmSettings, Precision, Runner

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["TESTED_VLLM", "check_vllm", "computing_type", "launch"]

_log = structlog.stdlib.get_logger(__name__)

TESTED_VLLM: Final = "0.32"
"""The release of vLLM whose internals Tidegate replaces, in the server and in the engine."""

_INVARIANT: Final = "VLLM_BATCH_INVARIANT"
_X86: Final = frozenset({"x86_64", "amd64"})
# Of 16-bit numbers these know nothing; see torch.backends.cpu.get_cpu_capability.
_WITHOUT_16_BITS: Final = frozenset({"DEFAULT", "AVX2"})
# The weights are read beside what is made of them.
_SHARE_OF_MEMORY: Final = 0.5


def launch(settings: LlmSettings, path: Path, name: str) -> "AsyncLLM":
    """Loads a model; the environment must have been prepared. Raises whatever vLLM does.

    Args:
        settings: How to run it.
        path: Folder of the model.
        name: Name that clients know it by.
    """
    import vllm
    from vllm.envs import enable_envs_cache
    from vllm.platforms import current_platform

    check_vllm(vllm.__version__)
    on_cpu = current_platform.is_cpu()
    _choose_invariance(settings, on_cpu=on_cpu)
    llm = _started(_arguments(settings, path, name, on_cpu=on_cpu), on_cpu=on_cpu)
    # vLLM asks after its settings for each token, and the environment each time unless it may keep
    # what it found; in the engine's process it does so by itself.
    enable_envs_cache()
    return llm


def check_vllm(version: str) -> None:
    """Refuses a vLLM whose internals may be others than those that Tidegate replaces.

    Args:
        version: Of the vLLM that is installed.

    Raises:
        StartupError: It is of another release.
    """
    if version.split(".")[:2] != TESTED_VLLM.split("."):
        raise StartupError(
            f"vLLM {version} is installed, and Tidegate replaces internals of vLLM {TESTED_VLLM}:"
            f" install a vLLM {TESTED_VLLM}"
        )


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


def _arguments(settings: LlmSettings, path: Path, name: str, *, on_cpu: bool) -> "AsyncEngineArgs":
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    dtype = computing_type(settings.dtype, path) if on_cpu else settings.dtype
    if dtype is not settings.dtype:
        _log.info(
            "computing in float32: this CPU is slow with 16 bits; --dtype decides if it is set"
        )
    eager = on_cpu if settings.enforce_eager is None else settings.enforce_eager
    adapters = settings.adapters
    embeds = settings.runner is Runner.POOLING
    arguments = AsyncEngineArgs(
        model=str(path),
        served_model_name=name,
        runner=settings.runner.value,
        convert="embed" if embeds else "auto",
        dtype=dtype.value,
        max_num_seqs=settings.max_running_requests,
        scheduling_policy=settings.scheduling_policy.value,
        enforce_eager=eager,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        enable_lora=bool(adapters),
        max_loras=max(len(adapters), 1),
        max_lora_rank=_lora_rank(settings.max_lora_rank),
        # One backend and none to fall back to: with "auto", whichever request comes first decides
        # for all, and a schema checked by one is compiled by another that ignores half of it.
        structured_outputs_config=StructuredOutputsConfig(
            backend="guidance", disable_any_whitespace=True
        ),
        enable_log_requests=False,
    )
    if settings.batch_invariant and on_cpu:
        # A request alone is computed in the same steps each time, unless part of its prompt is in
        # the cache.
        arguments.max_num_seqs = 1
        arguments.enable_prefix_caching = False
    if settings.max_context_tokens is not None:
        arguments.max_model_len = settings.max_context_tokens
    if not _has_plugin():
        _log.warning(
            "VLLM_PLUGINS leaves out tidegate, and so the kernels of --cpu-kernels, and log"
            " probabilities beside a constraint"
        )
        return arguments
    os.environ[HAS_RAW_LOGPROBS] = "1"
    if on_cpu and eager and settings.cpu_kernels:
        os.environ[HAS_KERNELS] = "1"
        arguments.ir_op_priority = norm_kernels.priorities()
    return arguments


def _choose_invariance(settings: LlmSettings, *, on_cpu: bool) -> None:
    """Turns vLLM's batch-invariant mode on where it works; it is made of kernels for Triton.

    Raises:
        StartupError: The environment asks for it on a CPU, where the engine would die of the first
            request that samples.
    """
    if not on_cpu:
        if settings.batch_invariant:
            os.environ[_INVARIANT] = "1"
    elif os.environ.get(_INVARIANT, "0") != "0":
        raise StartupError(
            f"{_INVARIANT} is set, and vLLM has no batch-invariant mode for CPUs: unset it, and"
            " pass --batch-invariant, which works on one request at a time"
        )


def _has_plugin() -> bool:
    from vllm import envs

    return envs.VLLM_PLUGINS is None or PLUGIN in envs.VLLM_PLUGINS


def _started(arguments: "AsyncEngineArgs", *, on_cpu: bool) -> "AsyncLLM":
    from vllm.v1.engine.async_llm import AsyncLLM

    if not on_cpu:
        return AsyncLLM.from_engine_args(arguments)
    with preloaded(engine_libraries()):
        if arguments.tensor_parallel_size > 1 or not has_few_cores(len(os.sched_getaffinity(0))):
            return AsyncLLM.from_engine_args(arguments)
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.ompmultiprocessing import OMPProcessManager
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        # By its class: on a CPU vLLM takes the name for a default, and another executor.
        arguments.distributed_executor_backend = UniProcExecutor
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
            return AsyncLLM.from_vllm_config(config)


def _lora_rank(rank: int) -> Any:
    """Gives the smallest rank of those that vLLM makes room for."""
    from vllm.config.lora import MaxLoRARanks

    return min(each for each in get_args(MaxLoRARanks) if each >= rank)


def _has_plain_weights(model: Path) -> bool:
    """Whether they can be of any type: for quantized ones vLLM has kernels that decide it."""
    config = model / "config.json"
    return config.is_file() and "quantization_config" not in json.loads(config.read_text())
