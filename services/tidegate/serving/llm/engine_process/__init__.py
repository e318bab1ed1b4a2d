"""Code that runs inside the processes of vLLM's engine.

vLLM calls `prepare_process` as a plugin (``vllm.general_plugins`` in ``pyproject.toml``).
"""

from tidegate.serving.llm.engine_process.plugin import prepare_process

__all__ = ["prepare_process"]
