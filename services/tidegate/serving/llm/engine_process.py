"""What is ours in the processes of vLLM's engine: they end soon, and with the server at the latest.

vLLM's engine ends when its server tells it to. One whose server was killed (out of memory, say)
would stay, and keep the memory of the model, so that the next server finds none. vLLM runs this
module's function in each of its processes, as one of its plugins (``vllm.general_plugins``).
"""

import atexit
import gc
import multiprocessing
import os
import signal
import threading
from typing import Final

__all__ = ["ENDS_WITH_SERVER", "prepare_to_end"]

ENDS_WITH_SERVER: Final = "TIDEGATE_ENGINE_ENDS_WITH_SERVER"
"""Set in the environment of engines that a Tidegate server starts, and of no other vLLM's."""


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
