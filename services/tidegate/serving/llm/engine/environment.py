"""What vLLM takes from the environment only, and what a server sets there before it is imported."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

from tidegate.serving.llm.engine_process.plugin import ENDS_WITH_SERVER

__all__ = [
    "engine_environment",
    "engine_libraries",
    "has_few_cores",
    "intel_openmp",
    "preloaded",
    "prepare_environment",
]

_FEW_CORES: Final = 4
_OPENMP: Final = "libiomp5.so"


def prepare_environment(kv_cache_gib: int) -> None:
    """Sets it in this process, for vLLM here and in the processes that it starts.

    What is set already is an operator's and stays.

    Args:
        kv_cache_gib: Memory for keys and values on a CPU, in GiB.
    """
    serving = {
        # A fork would take gRPC's threads and locks along.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Log lines leave through the chassis, in its form.
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        ENDS_WITH_SERVER: "1",
    }
    cores = len(os.sched_getaffinity(0))
    for name, value in (serving | engine_environment(kv_cache_gib, cores)).items():
        os.environ.setdefault(name, value)


def engine_environment(kv_cache_gib: int, cores: int) -> dict[str, str]:
    """Says how the engine computes on a CPU.

    Args:
        kv_cache_gib: Memory for keys and values, in GiB.
        cores: Logical processors that this process may use.

    Returns:
        Environment variables; none of them matters on a GPU.
    """
    found = {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}
    if has_few_cores(cores):
        # vLLM keeps one core from the computation, for its scheduler and the server. Of many cores
        # that is little; of few it is much more than these two need.
        found["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    return found


def has_few_cores(cores: int) -> bool:
    """Says whether all cores compute and none is kept for the engine's scheduler."""
    return cores <= _FEW_CORES


def engine_libraries() -> dict[str, str]:
    """Gives the environment that loads what vLLM advises on a CPU, as far as it is installed.

    These are Intel's OpenMP and tcmalloc; see
    https://docs.vllm.ai/en/latest/getting_started/installation/cpu/.
    """
    found = [str(each) for each in (find_library("tcmalloc_minimal"), intel_openmp()) if each]
    # The loader takes both for separators, and would look for the parts.
    usable = [each for each in found if " " not in each and ":" not in each]
    return {"LD_PRELOAD": ":".join(usable)} if usable else {}


def intel_openmp() -> Path | None:
    """Finds Intel's OpenMP, which vLLM for x86 CPUs brings along."""
    try:
        installed = files("intel-openmp") or ()
    except PackageNotFoundError:
        return None
    found = (Path(str(each.locate())).resolve() for each in installed if each.name == _OPENMP)
    return next((path for path in found if path.is_file()), None)


@contextmanager
def preloaded(variables: dict[str, str]) -> Iterator[None]:
    """Has processes that are started meanwhile load libraries; an operator's choice stays.

    Args:
        variables: See `engine_libraries`.
    """
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
