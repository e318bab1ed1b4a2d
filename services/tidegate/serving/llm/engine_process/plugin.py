"""The plugin that vLLM runs in each of its processes: how they end, and what they compute.

vLLM's engine ends when its server tells it to. If the kernel kills the server, for example out of
memory, the engine must end too: otherwise it keeps the model's memory, and the next server lacks
it. vLLM runs `prepare_process` in each of its processes as a plugin (``vllm.general_plugins``).
"""

import atexit
import gc
import multiprocessing
import os
import signal
import threading
from typing import Final

__all__ = [
    "ENDS_WITH_SERVER",
    "HAS_KERNELS",
    "HAS_RAW_LOGPROBS",
    "PLUGIN",
    "prepare_process",
    "prepare_to_end",
]

PLUGIN: Final = "tidegate"
"""Name of the plugin; an operator can turn it off with ``VLLM_PLUGINS``."""

ENDS_WITH_SERVER: Final = "TIDEGATE_ENGINE_ENDS_WITH_SERVER"
"""Set in the environment of engines that a Tidegate server starts, and of no other vLLM."""

HAS_KERNELS: Final = "TIDEGATE_ENGINE_HAS_KERNELS"
"""Also set if the engine runs the kernels of `norm_kernels`."""

HAS_RAW_LOGPROBS: Final = "TIDEGATE_ENGINE_HAS_RAW_LOGPROBS"
"""Also set if log probabilities are those of `raw_logprobs`."""


def prepare_process() -> None:
    """Prepares a process of vLLM as the environment says. It may be called more than once."""
    prepare_to_end()
    if HAS_KERNELS in os.environ:
        from tidegate.serving.llm.engine_process.norm_kernels import register

        register()
    if HAS_RAW_LOGPROBS in os.environ and multiprocessing.parent_process() is not None:
        from tidegate.serving.llm.engine_process import raw_logprobs

        raw_logprobs.register()


def prepare_to_end() -> None:
    """Makes this process end quickly, and kills it when its parent has ended.

    This applies only to processes that a Tidegate server has started. The function may be called
    more than once. In the server itself it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None or ENDS_WITH_SERVER not in os.environ:
        return
    # At exit the interpreter would search all objects of vLLM for cycles, for seconds. The memory
    # is freed without that.
    atexit.register(gc.freeze)

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
