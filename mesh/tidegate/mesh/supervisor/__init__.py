"""Starts Tidegate's servers on a laptop, keeps them running, and stops them cleanly.

`config` says what to run, `machine` decides, `process` and `guard` do, `state` tells others. The
servers are programs to it: it imports none of their code.
"""

from tidegate.mesh.supervisor.errors import (
    AlreadyRunningError,
    ConfigError,
    NotRunningError,
    PortInUseError,
    StillRunningError,
    SupervisorError,
)
from tidegate.mesh.supervisor.state import ServerSnapshot, Snapshot, StateDirectory

__all__ = [
    "AlreadyRunningError",
    "ConfigError",
    "NotRunningError",
    "PortInUseError",
    "ServerSnapshot",
    "Snapshot",
    "StateDirectory",
    "StillRunningError",
    "SupervisorError",
]
