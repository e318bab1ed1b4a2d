"""What keeps the supervisor from starting or stopping servers; each message says what to do."""

from pathlib import Path

from tidegate.errors import TidegateError

__all__ = [
    "AlreadyRunningError",
    "ConfigError",
    "NotRunningError",
    "PortInUseError",
    "RestartError",
    "StillRunningError",
    "SupervisorError",
]


class SupervisorError(TidegateError):
    """The supervisor cannot do what it was asked."""


class ConfigError(SupervisorError):
    """The file of servers cannot be read or says something wrong.

    Args:
        path: the file.
        problems: what is wrong, each with its place in the file and the fix.
    """

    def __init__(self, path: Path, *problems: str) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.path = path
        self.problems = problems


class PortInUseError(SupervisorError):
    """A port that a server is to listen on is taken."""


class AlreadyRunningError(SupervisorError):
    """Another supervisor holds this directory."""


class NotRunningError(SupervisorError):
    """No supervisor runs in this directory."""


class StillRunningError(SupervisorError):
    """A supervisor was told to stop and has not."""


class RestartError(SupervisorError):
    """A server could not be restarted."""
