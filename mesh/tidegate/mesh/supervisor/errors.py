"""Errors of the supervisor; each message says what to do."""

from pathlib import Path

from tidegate.errors import TidegateError

__all__ = [
    "AlreadyRunningError",
    "CollectorError",
    "ConfigError",
    "NotRunningError",
    "PortInUseError",
    "RestartError",
    "StillRunningError",
    "SupervisorError",
]


class SupervisorError(TidegateError):
    """The supervisor cannot do what it was asked to."""


class ConfigError(SupervisorError):
    """The file that lists the servers cannot be read or has a wrong value.

    Args:
        path: The file.
        problems: The problems, each with its place in the file and the fix.
    """

    def __init__(self, path: Path, *problems: str) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.path = path
        self.problems = problems


class CollectorError(SupervisorError):
    """The collector of spans that a flag or a variable names is malformed."""


class PortInUseError(SupervisorError):
    """A server cannot listen on a port."""


class AlreadyRunningError(SupervisorError):
    """Another supervisor holds this directory."""


class NotRunningError(SupervisorError):
    """No supervisor runs in this directory."""


class StillRunningError(SupervisorError):
    """A supervisor was asked to stop and still runs."""


class RestartError(SupervisorError):
    """A restart of a server failed."""
