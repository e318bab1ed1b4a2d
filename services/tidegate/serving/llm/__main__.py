"""``python -m tidegate.serving.llm``: the LLM server as a process."""

import sys

from tidegate.chassis import run
from tidegate.serving.llm.application import LlmApplication
from tidegate.serving.llm.settings import LlmSettings


def main() -> int:
    """Reads the settings and serves; returns the exit code."""
    return run(LlmApplication, LlmSettings.from_command_line())


if __name__ == "__main__":
    sys.exit(main())
