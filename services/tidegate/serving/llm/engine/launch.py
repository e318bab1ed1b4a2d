"""Starts vLLM's engine with the options and processes that suit the machine.

On a CPU, vLLM computes in a worker process that its engine core starts, so that OpenMP finds its
settings when it is loaded there. The scheduler runs beside it on a reserved CPU core. A machine
with few CPU cores reserves none (see `environment`). There the process of the engine core gets the
OpenMP settings and computes itself. That is as fast, and saves a process that would load vLLM for
many seconds and take hundreds of megabytes.
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
from tidegate.serving.llm.postprocessing.parsers import ParserNames, check_names
from tidegate.serving.llm.settings import LlmSettings, Precision, Runner

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["TESTED_VLLM", "check_vllm", "compute_dtype", "launch"]

_log = structlog.stdlib.get_logger(__name__)

TESTED_VLLM: Final = "0.32"
"""The release of vLLM whose internals Tidegate replaces, in the server and in the engine."""

_BATCH_INVARIANT: Final = "VLLM_BATCH_INVARIANT"
_X86: Final = frozenset({"x86_64", "amd64"})
# CPUs without 16-bit arithmetic; see torch.backends.cpu.get_cpu_capability.
_WITHOUT_16_BITS: Final = frozenset({"DEFAULT", "AVX2"})
# Loading holds the weights of the files beside the converted ones.
_SHARE_OF_MEMORY: Final = 0.5


def launch(settings: LlmSettings, path: Path, name: str, parsers: ParserNames) -> "AsyncLLM":
    """Loads a model. Call `prepare_environment` before. Errors of vLLM pass through.

    Args:
        settings: The settings of the server.
        path: The model's folder.
        name: The model's name for clients.
        parsers: The parsers of the model's answers.
    """
    import vllm
    from vllm.envs import enable_envs_cache
    from vllm.platforms import current_platform

    check_vllm(vllm.__version__)
    check_names(parsers)
    on_cpu = current_platform.is_cpu()
    _set_batch_invariance(settings, on_cpu=on_cpu)
    arguments = _engine_arguments(settings, path, name, parsers, on_cpu=on_cpu)
    llm = _start(arguments, on_cpu=on_cpu)
    # vLLM reads its settings for each token, from the environment unless the cache is on. In the
    # engine's process vLLM turns the cache on by itself.
    enable_envs_cache()
    return llm


def check_vllm(version: str) -> None:
    """Refuses a release of vLLM whose internals may differ from those that Tidegate replaces.

    Args:
        version: The installed version of vLLM.

    Raises:
        StartupError: It is another release.
    """
    if version.split(".")[:2] != TESTED_VLLM.split("."):
        raise StartupError(
            f"vLLM {version} is installed, but Tidegate replaces internals of vLLM {TESTED_VLLM}:"
            f" install vLLM {TESTED_VLLM}"
        )


def compute_dtype(requested: Precision, model: Path) -> Precision:
    """Chooses the data type that vLLM computes in on a CPU.

    An x86 CPU without AVX-512 converts every 16-bit number to 32 bits before each computation.
    That makes it several times slower than with 32-bit weights (``benchmarks/llm/options.py``
    measures it). So the server takes 32-bit weights if they fit in memory.

    Args:
        requested: The operator's choice; anything but ``auto`` is final.
        model: The model's folder.

    Returns:
        The type for vLLM; ``auto`` is the model's own type.
    """
    import torch

    slow = (
        platform.machine().lower() in _X86
        and torch.backends.cpu.get_cpu_capability() in _WITHOUT_16_BITS
    )
    if requested is not Precision.AUTO or not slow or not _has_plain_weights(model):
        return requested
    weights_bytes = sum(each.stat().st_size for each in model.glob("*.safetensors"))
    # 16-bit weights in the files take twice their size in memory.
    fits = 2 * weights_bytes <= _SHARE_OF_MEMORY * psutil.virtual_memory().available
    return Precision.FLOAT32 if fits else requested


def _engine_arguments(
    settings: LlmSettings, path: Path, name: str, parsers: ParserNames, *, on_cpu: bool
) -> "AsyncEngineArgs":
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    dtype = compute_dtype(settings.dtype, path) if on_cpu else settings.dtype
    if dtype is not settings.dtype:
        _log.info(
            "computing in float32: this CPU is slow with 16-bit types; set --dtype to override"
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
        # One backend without a fallback. With "auto", the first request decides for all, and a
        # backend could compile a schema that another one checked, and ignore half of it.
        structured_outputs_config=StructuredOutputsConfig(
            backend="guidance", disable_any_whitespace=True
        ),
        # A constraint begins after the reasoning.
        reasoning_parser=parsers.reasoning,
        enable_log_requests=False,
    )
    if settings.batch_invariant and on_cpu:
        # A single request runs in the same steps each time, unless the cache has a part of its
        # prompt.
        arguments.max_num_seqs = 1
        arguments.enable_prefix_caching = False
    if settings.max_context_tokens is not None:
        arguments.max_model_len = settings.max_context_tokens
    if not _has_plugin():
        _log.warning(
            "VLLM_PLUGINS does not list tidegate: no kernels of --cpu-kernels, and no log"
            " probabilities together with a constraint"
        )
        return arguments
    os.environ[HAS_RAW_LOGPROBS] = "1"
    if on_cpu and eager and settings.cpu_kernels:
        os.environ[HAS_KERNELS] = "1"
        arguments.ir_op_priority = norm_kernels.priorities()
    return arguments


def _set_batch_invariance(settings: LlmSettings, *, on_cpu: bool) -> None:
    """Turns on vLLM's batch-invariant mode where it works; it consists of Triton kernels.

    Raises:
        StartupError: The environment turns it on for a CPU. There the engine would die at the first
            request that samples.
    """
    if not on_cpu:
        if settings.batch_invariant:
            os.environ[_BATCH_INVARIANT] = "1"
    elif os.environ.get(_BATCH_INVARIANT, "0") != "0":
        raise StartupError(
            f"{_BATCH_INVARIANT} is set, but vLLM has no batch-invariant mode for CPUs: unset it,"
            " and pass --batch-invariant, which runs one request at a time"
        )


def _has_plugin() -> bool:
    from vllm import envs

    return envs.VLLM_PLUGINS is None or PLUGIN in envs.VLLM_PLUGINS


def _start(arguments: "AsyncEngineArgs", *, on_cpu: bool) -> "AsyncLLM":
    from vllm.v1.engine.async_llm import AsyncLLM

    if not on_cpu:
        return AsyncLLM.from_engine_args(arguments)
    with preloaded(engine_libraries()):
        if arguments.tensor_parallel_size > 1 or not has_few_cores(len(os.sched_getaffinity(0))):
            return AsyncLLM.from_engine_args(arguments)
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.ompmultiprocessing import OMPProcessManager
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        # Given by class: on a CPU vLLM treats the name as the default and picks another executor.
        arguments.distributed_executor_backend = UniProcExecutor
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
            return AsyncLLM.from_vllm_config(config)


def _lora_rank(rank: int) -> Any:
    """Returns the smallest rank that vLLM supports and that is large enough."""
    from vllm.config.lora import MaxLoRARanks

    return min(each for each in get_args(MaxLoRARanks) if each >= rank)


def _has_plain_weights(model: Path) -> bool:
    """Returns whether the weights can have any type; vLLM's kernels fix that of quantized ones."""
    config = model / "config.json"
    return config.is_file() and "quantization_config" not in json.loads(config.read_text())
