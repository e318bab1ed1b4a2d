"""``python -m tidegate.gateway``: the gateway as a process."""

import sys

import tidegate.runtime.event_engine  # noqa: F401 - it must run before anything imports grpc

# isort: split
from tidegate.gateway.server import serve
from tidegate.gateway.settings import GatewaySettings
from tidegate.runtime.process import run_process


def main() -> int:
    """Reads the settings and serves; returns the exit code."""
    settings = GatewaySettings.from_command_line()
    return run_process(lambda: serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
