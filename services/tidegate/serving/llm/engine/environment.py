"""Sets the environment variables of vLLM; some of its settings exist only there."""

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
    """Sets vLLM's environment variables in this process, before vLLM is imported.

    The processes of vLLM inherit them. Variables that are set already are the operator's and stay.

    Args:
        kv_cache_gib: Size of the key-value cache on a CPU, in GiB.
    """
    serving = {
        # A fork would copy locks of gRPC's threads.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # The chassis writes log lines, in its own format.
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        ENDS_WITH_SERVER: "1",
    }
    cores = len(os.sched_getaffinity(0))
    for name, value in (serving | engine_environment(kv_cache_gib, cores)).items():
        os.environ.setdefault(name, value)


def engine_environment(kv_cache_gib: int, cores: int) -> dict[str, str]:
    """Returns the environment variables for the computation on a CPU.

    Args:
        kv_cache_gib: Size of the key-value cache, in GiB.
        cores: Logical processors that this process may use.

    Returns:
        Environment variables; they have no effect on a GPU.
    """
    found = {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}
    if has_few_cores(cores):
        # vLLM reserves one core for its scheduler and the server. On few cores that is much more
        # than these two need.
        found["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    return found


def has_few_cores(cores: int) -> bool:
    """Returns whether all cores compute and none is reserved for the engine's scheduler."""
    return cores <= _FEW_CORES


def engine_libraries() -> dict[str, str]:
    """Returns the environment that preloads the libraries that vLLM advises on a CPU.

    These are Intel's OpenMP and tcmalloc, if they are installed; see
    https://docs.vllm.ai/en/latest/getting_started/installation/cpu/.
    """
    found = [str(each) for each in (find_library("tcmalloc_minimal"), intel_openmp()) if each]
    # The loader splits LD_PRELOAD at spaces and colons.
    usable = [each for each in found if " " not in each and ":" not in each]
    return {"LD_PRELOAD": ":".join(usable)} if usable else {}


def intel_openmp() -> Path | None:
    """Returns the path of Intel's OpenMP, which is a dependency of vLLM for x86 CPUs."""
    try:
        installed = files("intel-openmp") or ()
    except PackageNotFoundError:
        return None
    found = (Path(str(each.locate())).resolve() for each in installed if each.name == _OPENMP)
    return next((path for path in found if path.is_file()), None)


@contextmanager
def preloaded(variables: dict[str, str]) -> Iterator[None]:
    """Makes processes that start within the context preload libraries.

    Variables that are set already are the operator's and stay.

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
