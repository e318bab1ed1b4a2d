"""Code that runs inside the processes of vLLM's engine: `plugin` is the entry point of vLLM."""

from tidegate.serving.llm.engine_process.plugin import prepare_process

__all__ = ["prepare_process"]
