"""Commands to a running supervisor: a file in its folder, and a signal that it is there.

``tidegate restart`` sends such a command. The supervisor publishes its progress in the state file,
under the command's id.
"""

import contextlib
import json
import os
import signal
import uuid
from dataclasses import asdict, dataclass

from tidegate.mesh.supervisor.errors import NotRunningError
from tidegate.mesh.supervisor.state.directory import StateDirectory

__all__ = ["COMMAND_SIGNAL", "RestartCommand", "send_restart", "take_commands"]

COMMAND_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True, slots=True)
class RestartCommand:
    """The command to restart a server.

    Attributes:
        id: The key of its progress in the state file.
        name: The server.
    """

    id: str
    name: str


def send_restart(directory: StateDirectory, pid: int, name: str) -> RestartCommand:
    """Asks the supervisor to restart a server.

    Args:
        directory: The supervisor's folder.
        pid: The supervisor's process id.
        name: The server.

    Raises:
        NotRunningError: The supervisor has ended.
    """
    command = RestartCommand(uuid.uuid4().hex, name)
    file = directory.commands / f"{command.id}.json"
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(asdict(command)), encoding="utf-8")
    draft.replace(file)
    try:
        os.kill(pid, COMMAND_SIGNAL)
    except ProcessLookupError:
        file.unlink(missing_ok=True)
        raise NotRunningError("the supervisor has ended; start it with `tidegate up`") from None
    return command


def take_commands(directory: StateDirectory) -> tuple[RestartCommand, ...]:
    """Takes the commands that have come; each is returned once."""
    commands = []
    for file in sorted(directory.commands.glob("*.json")):
        # Another program wrote a file that is no command; it is deleted too.
        with contextlib.suppress(ValueError, TypeError):
            commands.append(RestartCommand(**json.loads(file.read_bytes())))
        file.unlink(missing_ok=True)
    return tuple(commands)
