"""What is ours in the processes of vLLM's engine: how they end, and what they compute our way.

vLLM's engine ends when its server tells it to. One whose server was killed (out of memory, say)
would stay, and keep the memory of the model, so that the next server finds none. vLLM runs
`prepare_process` in each of its processes, as one of its plugins (``vllm.general_plugins``).
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
"""Name of the plugin, which an operator can leave out with ``VLLM_PLUGINS``."""

ENDS_WITH_SERVER: Final = "TIDEGATE_ENGINE_ENDS_WITH_SERVER"
"""Set in the environment of engines that a Tidegate server starts, and of no other vLLM's."""

HAS_KERNELS: Final = "TIDEGATE_ENGINE_HAS_KERNELS"
"""Set beside it where the engine runs the kernels of `norm_kernels`."""

HAS_RAW_LOGPROBS: Final = "TIDEGATE_ENGINE_HAS_RAW_LOGPROBS"
"""Set beside it where log probabilities are those of `raw_logprobs`."""


def prepare_process() -> None:
    """Does in a process of vLLM's what the environment asks for. May be called more than once."""
    prepare_to_end()
    if HAS_KERNELS in os.environ:
        from tidegate.serving.llm.engine_process.norm_kernels import register

        register()
    if HAS_RAW_LOGPROBS in os.environ and multiprocessing.parent_process() is not None:
        from tidegate.serving.llm.engine_process import raw_logprobs

        raw_logprobs.register()


def prepare_to_end() -> None:
    """Lets this process end quickly, and kills it once its parent has ended.

    It does so if a Tidegate server is above the process. May be called more than once, and in the
    server itself, where it does nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None or ENDS_WITH_SERVER not in os.environ:
        return
    # An interpreter that ends looks for cycles in all that vLLM imported, for seconds; the memory
    # is freed without that.
    atexit.register(gc.freeze)

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
