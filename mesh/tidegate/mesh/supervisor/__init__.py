"""The supervisor: starts servers on a laptop, keeps them running, and stops them cleanly.

`config` reads what to run, `programs` turns it into command lines, `process` runs and probes one
process, `server` restarts a server without loss, and `state` publishes it all. The supervisor
starts servers as programs and imports none of their code. To add a kind of server, add a value to
`config.server_kinds`.
"""

from tidegate.mesh.supervisor.errors import (
    AlreadyRunningError,
    ConfigError,
    NotRunningError,
    PortInUseError,
    StillRunningError,
    SupervisorError,
)
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.state.snapshot import ServerSnapshot, Snapshot

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
