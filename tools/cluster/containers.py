"""Runs one container of a Pod as a process: probes, restarts, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.container_view import ContainerUser, view_arguments
from cluster.networks import NETWORKS
from cluster.settings import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cluster.pod_spec import ContainerSpec, Probe
    from cluster.probes import Prober
    from cluster.volumes import PodVolumes

__all__ = ["Container", "PodPlace", "now"]

_FIRST_BACKOFF_S: Final = 1.0
_MAX_BACKOFF_S: Final = 30.0
# The exit code that Kubernetes gives to a container that cannot start.
_CANNOT_START: Final = 128


class PodPlace:
    """Where the processes of a Pod run.

    Args:
        network: The name of its network namespace.
        folder: The folder with what they see at fixed places: `secrets`, as `/run/secrets`, and
            `resolv.conf`; and with an empty folder `root`.
        volumes: The Pod's volumes.
        logs: The folder for their output.
    """

    def __init__(self, network: str, folder: Path, volumes: PodVolumes, logs: Path) -> None:
        self.network = network
        self.logs = logs
        self.volumes = volumes
        self._folder = folder

    def command(self, command: Sequence[str], spec: ContainerSpec | None = None) -> list[str]:
        """The command line that runs a command in the Pod.

        Args:
            command: The command.
            spec: The container whose files the command sees, and as whose user it runs; `None` for
                the machine's files and root.
        """
        mounts = [
            (each.path, self.volumes.path(each.volume, each.sub_path), each.is_read_only)
            for each in (spec.mounts if spec else ())
        ]
        return [
            *("nsenter", f"--net={NETWORKS / self.network}", "--", "unshare", "--mount", "--"),
            *view_arguments(
                mounts=mounts,
                is_read_only=bool(spec and spec.is_read_only),
                user=spec.user if spec else ContainerUser(),
                folder=spec.folder if spec else Path.cwd(),
                root=self._folder / "root",
                secrets=self._folder / "secrets",
                resolver=self._folder / "resolv.conf",
            ),
            *command,
        ]


class Container:
    """One container.

    Args:
        spec: What to run.
        place: Where to run it.
        restarts: The Pod's `restartPolicy`.
        prober: Checks it.
        on_change: Called when its status changes.
        report: Reports an event: a reason and a message.
    """

    def __init__(
        self,
        spec: ContainerSpec,
        place: PodPlace,
        restarts: str,
        prober: Prober,
        on_change: Callable[[], None],
        report: Callable[[str, str], None],
    ) -> None:
        self.spec = spec
        self._place = place
        self._restarts = restarts
        self._prober = prober
        self._on_change = on_change
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self._last: dict[str, Any] = {}
        self._count = 0
        self._ready = False
        self._started = False
        self._stopping = asyncio.Event()
        self.exit_code: int | None = None
        self.is_ready = asyncio.Event()

    @property
    def status(self) -> dict[str, Any]:
        """Its entry among the Pod's `containerStatuses`."""
        return {
            "name": self.spec.name,
            "image": self.spec.image,
            "imageID": "",
            "containerID": f"process://{self._process.pid}" if self._process else "",
            "ready": self._ready,
            "started": self._started,
            "restartCount": self._count,
            "state": self._state,
            "lastState": self._last,
        }

    async def run(self) -> None:
        """Runs the process, and starts it again as the policy says, until it is stopped."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping.is_set():
            self.exit_code = await self._run_once()
            again = self._restarts == "Always" or (
                self._restarts == "OnFailure" and self.exit_code != 0
            )
            if self._stopping.is_set() or not again:
                return
            self._last = self._state
            self._set({"waiting": {"reason": "CrashLoopBackOff", "message": f"{backoff_s:g} s"}})
            self._report("BackOff", f"restarting container {self.spec.name} in {backoff_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
                return
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            self._count += 1

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, or to its group if the signal is SIGKILL.

        Raises:
            ClusterError: It does not run.
        """
        process = self._process
        if process is None or process.returncode is not None:
            raise ClusterError(f"container {self.spec.name} does not run")
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)

    async def terminate(self, deadline: float) -> None:
        """Ends it: the `preStop` hook, SIGTERM, and SIGKILL at the deadline.

        Args:
            deadline: A time of the monotonic clock.
        """
        self._stopping.set()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._pre_stop()
        except TimeoutError:
            self._report("FailedPreStopHook", f"{self.spec.name}: it took the whole grace period")
        except OSError as error:
            self._report("FailedPreStopHook", f"{self.spec.name}: {error}")
        await self._end(deadline)

    async def _run_once(self) -> int:
        self._place.logs.mkdir(parents=True, exist_ok=True)
        self._set({"waiting": {"reason": "ContainerCreating"}})
        started_at = now()
        try:
            process = await self._start()
        except OSError as error:
            self._set(_ended(_CANNOT_START, started_at, str(error)))
            return _CANNOT_START
        self._process = process
        if self._stopping.is_set():
            os.killpg(process.pid, signal.SIGKILL)
        self._started = "startup" not in self.spec.probes
        self._ready = self._started and "readiness" not in self.spec.probes
        self._set({"running": {"startedAt": started_at}})
        probing = asyncio.create_task(self._probe())
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing
            # Its own children end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._ready = self._started = False
        code = code if code >= 0 else 128 - code
        self._set(_ended(code, started_at))
        return code

    async def _start(self) -> asyncio.subprocess.Process:
        with (self._place.logs / f"{self.spec.name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._place.command(self.spec.command, self.spec),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.spec.env),
                cwd=self.spec.folder,
                start_new_session=True,
            )

    async def _probe(self) -> None:
        probes = self.spec.probes
        if startup := probes.get("startup"):
            if not await self._passes(startup):
                await self._restart("startup")
                return
            self._started = True
            self._ready = "readiness" not in probes
            self._set(self._state)
        async with asyncio.TaskGroup() as tasks:
            if readiness := probes.get("readiness"):
                tasks.create_task(self._watch_readiness(readiness))
            if liveness := probes.get("liveness"):
                tasks.create_task(self._watch_liveness(liveness))

    async def _passes(self, probe: Probe) -> bool:
        """Whether a startup probe succeeds before it has failed often enough."""
        await asyncio.sleep(probe.delay_s)
        for _ in range(probe.failures):
            if not await self._prober.failure(probe):
                return True
            await asyncio.sleep(probe.period_s)
        return False

    async def _watch_readiness(self, probe: Probe) -> None:
        await asyncio.sleep(probe.delay_s)
        successes = failures = 0
        while True:
            failure = await self._prober.failure(probe)
            successes, failures = (0, failures + 1) if failure else (successes + 1, 0)
            if not self._ready and successes >= probe.successes:
                self._ready = True
                self._set(self._state)
            elif self._ready and failures >= probe.failures:
                self._ready = False
                self._report("Unhealthy", f"readiness of {self.spec.name}: {failure}")
                self._set(self._state)
            await asyncio.sleep(probe.period_s)

    async def _watch_liveness(self, probe: Probe) -> None:
        await asyncio.sleep(probe.delay_s)
        failures = 0
        while failures < probe.failures:
            failure = await self._prober.failure(probe)
            failures = failures + 1 if failure else 0
            await asyncio.sleep(probe.period_s)
        await self._restart("liveness")

    async def _restart(self, probe: str) -> None:
        """Ends the process after a failed probe; `run` starts it again."""
        if self._stopping.is_set():
            return
        self._report("Killing", f"the {probe} probe of {self.spec.name} failed; it is restarted")
        await self._end(time.monotonic() + 30.0)

    async def _pre_stop(self) -> None:
        hook: Mapping[str, Any] = self.spec.pre_stop
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            process = await asyncio.create_subprocess_exec(
                *self._place.command(hook["exec"]["command"], self.spec),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=dict(self.spec.env),
                cwd=self.spec.folder,
            )
            try:
                await process.wait()
            except asyncio.CancelledError:
                process.kill()
                raise
        elif hook:
            self._report("FailedPreStopHook", f"{self.spec.name}: only sleep and exec are known")

    async def _end(self, deadline: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _set(self, state: dict[str, Any]) -> None:
        self._state = state
        if self._ready:
            self.is_ready.set()
        self._on_change()


def _ended(code: int, started_at: str, message: str = "") -> dict[str, Any]:
    return {
        "terminated": {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "message": message,
            "startedAt": started_at,
            "finishedAt": now(),
        }
    }


def now() -> str:
    """The time as Kubernetes writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
