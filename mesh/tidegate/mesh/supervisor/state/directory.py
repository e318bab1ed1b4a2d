"""The folder ``.tidegate``: the lock, the state file, and the paths of everything else.

One supervisor at a time holds the lock (``flock``). The kernel releases the lock when the process
ends, so a dead supervisor never blocks the next one. The supervisor replaces ``state.json``
atomically. Readers trust the file only while the lock is held: otherwise a supervisor that was
killed left it behind.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tidegate.mesh.supervisor.errors import AlreadyRunningError, SupervisorError
from tidegate.mesh.supervisor.state.snapshot import Snapshot

__all__ = ["DIRECTORY", "StateDirectory"]

DIRECTORY = Path(".tidegate")
# `held` takes the lock for a moment; a supervisor that starts then waits for it.
_LOCK_TRIES, _LOCK_WAIT_S = 10, 0.05


class StateDirectory:
    """The folder of one supervisor.

    Args:
        root: The folder; the supervisor creates it.
    """

    def __init__(self, root: Path = DIRECTORY) -> None:
        self.root = root
        self.state_file = root / "state.json"
        self.mesh_state = root / "mesh.sqlite"
        self.traces = root / "traces.sqlite"
        self.rollouts = root / "rollouts.sqlite"
        self.prometheus = root / "prometheus.yml"
        self.prometheus_targets = root / "prometheus-targets.json"
        self.lock_file = root / "lock"
        self.logs = root / "logs"
        self.run = root / "run"
        self.workloads = root / "workloads"
        self.commands = root / "commands"

    def log_file(self, name: str) -> Path:
        """The log file of a process."""
        return self.logs / f"{name}.log"

    def port_file(self, name: str) -> Path:
        """The file to which a process writes its ports."""
        return self.run / f"{name}.json"

    def workload_file(self, name: str) -> Path:
        """The file of a process's WorkloadEntry."""
        return self.workloads / f"{name}.yaml"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder, and deletes what a dead supervisor left of its state.

        Raises:
            AlreadyRunningError: Another supervisor holds the folder.
            SupervisorError: The folder cannot be written.
        """
        try:
            for folder in (self.root, self.logs, self.run, self.workloads, self.commands):
                folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SupervisorError(f"cannot write to {self.root}: {error.strerror}") from error
        try:
            if not self._take(descriptor):
                raise AlreadyRunningError(
                    f"tidegate is up already here ({self.root.resolve()}); "
                    "see `tidegate status`, or stop it with `tidegate down`"
                )
            self.state_file.unlink(missing_ok=True)
            for left in (*self.workloads.iterdir(), *self.commands.iterdir()):
                left.unlink()
            yield
            self.state_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def write(self, snapshot: Snapshot) -> None:
        """Replaces the state file atomically."""
        draft = self.state_file.with_suffix(".json.new")
        draft.write_text(snapshot.to_json(), encoding="utf-8")
        draft.replace(self.state_file)

    def read(self) -> Snapshot | None:
        """Reads the state file, which may be of a supervisor that is gone.

        Raises:
            SupervisorError: The file is not one of this version.
        """
        try:
            return Snapshot.from_json(self.state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise SupervisorError(
                f"{self.state_file} cannot be used: {error}; stop the supervisor and delete it"
            ) from error

    def held(self) -> bool:
        """Whether a supervisor runs in this folder."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def running(self) -> Snapshot | None:
        """The state, if the supervisor that wrote it still runs.

        Raises:
            SupervisorError: The state file is not one of this version.
        """
        return self.read() if self.held() else None

    @staticmethod
    def _take(descriptor: int) -> bool:
        for attempt in range(_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if attempt + 1 < _LOCK_TRIES:
                    time.sleep(_LOCK_WAIT_S)
            else:
                return True
        return False
