"""The two controllers as processes on one API server: the router, and Argo Rollouts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil
from objects import ARGO_NAMESPACE, TIDEGATE_NAMESPACE

from build_servers import BENCHMARK_SERVERS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Argo", "Controller", "Tidegate", "Usage", "free_port"]

ARGO_SERVER: Final = BENCHMARK_SERVERS["rollouts-controller"]
_POLL_S: Final = 0.25
_STOP_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far.

    Attributes:
        at_s: When, in seconds since the epoch.
        cpu_s: Its processor time, in seconds.
        rss_mb: Its resident memory.
    """

    at_s: float
    cpu_s: float
    rss_mb: float


class Controller:
    """One replica of a controller.

    Args:
        kubeconfig: The administrator's.
        folder: A folder for its log.

    Attributes:
        title: Its name in the report.
        agent: What its user agent starts with.
        namespace: Where its rollouts are.
        lease: The namespace and name of its lease.
        waits: What its log says once it waits for the lease.
    """

    title = ""
    agent = ""
    namespace = ""
    lease = ("", "")
    waits = ""

    def __init__(self, kubeconfig: Path, folder: Path, identity: str = "a") -> None:
        self.kubeconfig = kubeconfig
        self.identity = identity
        self.log = folder / f"{self.agent}-{identity}.log"
        self._ports = (free_port(), free_port())
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def command(self) -> list[str]:
        """Its command line."""
        raise NotImplementedError

    async def evaluated(self) -> int:
        """How many rollouts it has evaluated since it started."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts it; does not wait until it leads."""
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "POD_NAME": self.identity},
            )

    async def stop(self) -> float:
        """Ends it by SIGTERM; returns after how many seconds it had ended."""
        assert self._process is not None
        began_s = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self._process.wait, _STOP_S)
        return time.monotonic() - began_s

    def is_waiting(self) -> bool:
        """Whether it waits for another replica's lease."""
        return self.waits in self._new_log()

    def kill(self) -> None:
        """Ends it at once, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Sends SIGTERM; does not wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def usage(self) -> Usage:
        """What it has used so far.

        Raises:
            RuntimeError: It has ended.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.title} ended: {self.log.read_text()[-3000:]}")
        process = psutil.Process(self._process.pid)
        times = process.cpu_times()
        return Usage(time.time(), times.user + times.system, process.memory_info().rss / 1e6)

    async def until_evaluated(self, count: int, timeout_s: float) -> float:
        """Waits until so many rollouts are evaluated; returns after how many seconds."""
        began_s = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while await self.evaluated() < count:
                self.usage()
                await asyncio.sleep(_POLL_S)
        return time.monotonic() - began_s

    def _new_log(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")


class Tidegate(Controller):
    """The router of a cluster."""

    title = "Tidegate"
    agent = "tidegate-router"
    namespace = TIDEGATE_NAMESPACE
    lease = ("tidegate-system", "tidegate-router")
    waits = "waits for the lease"

    def command(self) -> list[str]:
        """Its command line: the defaults, but for one namespace and one receiver of logs."""
        grpc_port, metrics_port = self._ports
        return [
            *(sys.executable, "-m", "tidegate.router.cluster", "--identity", self.identity),
            *("--kubeconfig", str(self.kubeconfig), "--namespaces", self.namespace),
            *("--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)),
            *("--peers-service", "", "--traces-exporter", "none"),
        ]

    async def evaluated(self) -> int:
        """Evaluations; no loop takes a second turn while others wait for their first."""
        url = f"http://127.0.0.1:{self._ports[1]}/metrics"
        try:
            text = await asyncio.to_thread(_read, url)
        except OSError:
            return 0
        found = re.search(r"^tidegate_rollout_evaluations_total (\S+)", text, re.MULTILINE)
        return int(float(found[1])) if found else 0


class Argo(Controller):
    """Argo Rollouts."""

    title = "Argo Rollouts"
    agent = "rollouts-controller"
    namespace = ARGO_NAMESPACE
    lease = ("argo-rollouts", "argo-rollouts-controller-lock")
    waits = "New leader elected"

    def command(self) -> list[str]:
        """Its command line: the defaults, but for one namespace and its ports."""
        health_port, metrics_port = self._ports
        return [
            *(str(ARGO_SERVER.path), "--kubeconfig", str(self.kubeconfig)),
            *("--namespaced", "--namespace", self.namespace),
            *("--healthzPort", str(health_port), "--metricsPort", str(metrics_port)),
        ]

    async def evaluated(self) -> int:
        """The rollouts whose reconciliation has ended, as its log says."""
        lines = await asyncio.to_thread(self._new_log)
        return len(
            {
                found[1]
                for line in lines.splitlines()
                if "Reconciliation completed" in line and (found := _ROLLOUT.search(line))
            }
        )


_ROLLOUT: Final = re.compile(r"\brollout=(\S+)")


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def free_port() -> int:
    """Returns a port that is free now."""
    import socket

    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])
