"""The supervisor in the background, as `tidegate up --detach` starts it.

Usage: python -m tidegate.mesh.supervisor FILE DIRECTORY
"""

import asyncio
import sys
from pathlib import Path

from tidegate.errors import TidegateError
from tidegate.mesh.supervisor.config.servers_file import load_config
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.supervisor import Supervisor


def main() -> int:
    """Runs the supervisor until it is asked to stop.

    Returns:
        The exit status: 1 if the supervisor could not start or every server failed.
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
