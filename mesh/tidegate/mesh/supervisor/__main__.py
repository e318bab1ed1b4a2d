"""The supervisor without a terminal, as `tidegate up --detach` starts it.

Usage: python -m tidegate.mesh.supervisor FILE DIRECTORY
"""

import asyncio
import sys
from pathlib import Path

from tidegate.errors import TidegateError
from tidegate.mesh.supervisor.config import load_config
from tidegate.mesh.supervisor.state import StateDirectory
from tidegate.mesh.supervisor.supervisor import Supervisor


def main() -> int:
    """Runs until it is told to stop.

    Returns:
        The exit status: 1 when it could not start or every server failed.
    """
    path, directory = (Path(argument) for argument in sys.argv[1:3])
    try:
        config = load_config(path)
        gave_up = asyncio.run(Supervisor(config, path, StateDirectory(directory)).run())
    except TidegateError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return int(len(gave_up) == len(config.servers))


if __name__ == "__main__":
    sys.exit(main())
