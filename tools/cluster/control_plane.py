"""The control plane: etcd, the API server, the controller manager and istiod, as processes.

Each can be killed, paused, continued and started again, as tests of faults do. Ports are fixed,
since the cluster has a network namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import aiohttp

from cluster.settings import BRIDGE_ADDRESS, ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from cluster.kube_api import KubeApi
    from cluster.messages import Launch

__all__ = ["API_PORT", "PORTS", "ControlPlane", "Daemon"]

API_PORT: Final = 6443
PORTS: Final = {
    "etcd": 2379,
    "kube-apiserver": API_PORT,
    "istiod-xds": 15010,
    "istiod-http": 8080,
    "istiod-monitoring": 15014,
}
"""The ports of the control plane on its loopback address, by name."""

_ETCD_URL, _PEER_URL = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
_CONTROLLERS: Final = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "deployment-controller",
    "replicaset-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "horizontal-pod-autoscaler-controller",
    "disruption-controller",
    "root-ca-certificate-publisher-controller",
)
# Plain Envoy lacks the filters of Istio's own build. There is no webhook and no Gateway API.
_ISTIOD_ENV: Final = {
    "ENABLE_LEADER_ELECTION": "false",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "PILOT_CERT_PROVIDER": "istiod",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "PILOT_ENABLE_GATEWAY_API": "false",
    "PILOT_ENABLE_IP_AUTOALLOCATE": "false",
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "POD_NAMESPACE": "istio-system",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
}
_POLL_S: Final = 0.05
# The API server would wait a minute for the clients of its watches.
_STOP_S: Final = 5.0


@dataclass(slots=True)
class Daemon:
    """One server, as a process that can be started again.

    Attributes:
        name: Its name, for messages.
        command: Its command line.
        log: The file for its output; a restart appends.
        is_ready: Whether it serves.
        env: Environment variables beside those of this process.
        cwd: Its working directory.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    is_ready: Callable[[], Awaitable[bool]]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    _process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it; does not wait until it serves."""
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.env},
                cwd=self.cwd,
            )

    async def ready(self) -> None:
        """Waits until it serves.

        Raises:
            ClusterError: It has ended.
        """
        while not await self.is_ready():
            if self._process is None or self._process.returncode is not None:
                raise ClusterError(f"{self.name} ended: {self.log.read_text()[-3000:]}")
            await asyncio.sleep(_POLL_S)

    async def send(self, number: signal.Signals) -> None:
        """Sends a signal. After SIGKILL it waits for the end.

        Raises:
            ClusterError: It does not run.
        """
        process = self._process
        if process is None or process.returncode is not None:
            raise ClusterError(f"{self.name} does not run")
        process.send_signal(number)
        if number is signal.SIGKILL:
            await process.wait()

    async def restart(self) -> None:
        """Starts it again, and waits until it serves. If it runs, SIGTERM ends it first.

        Raises:
            ClusterError: It has ended again.
        """
        if self._process is not None and self._process.returncode is None:
            await self.send(signal.SIGTERM)
            # A paused server takes SIGTERM only once it continues.
            await self.send(signal.SIGCONT)
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except TimeoutError:
                await self.send(signal.SIGKILL)
        await self.start()
        await self.ready()


class ControlPlane:
    """The servers of one cluster.

    Args:
        launch: What the cluster is made of.
        api: A client of its API server.

    Attributes:
        daemons: The servers by name.
    """

    def __init__(self, launch: Launch, api: KubeApi) -> None:
        self._launch = launch
        self._api = api
        made = (self._etcd(), self._api_server(), self._controller_manager(), self._istiod())
        self.daemons = {each.name: each for each in made}

    async def start_storage(self) -> None:
        """Starts etcd and the API server, and waits until they serve."""
        for name in ("etcd", "kube-apiserver"):
            await self.daemons[name].start()
        await self.daemons["kube-apiserver"].ready()

    async def start_controllers(self) -> None:
        """Starts the controller manager and istiod, as far as the settings want them."""
        names = self._controllers()
        for name in names:
            await self.daemons[name].start()

    async def ready(self) -> None:
        """Waits until every server serves."""
        for name in self._controllers():
            await self.daemons[name].ready()

    def _controllers(self) -> list[str]:
        settings = self._launch.settings
        names = {"kube-controller-manager": settings.controllers, "istiod": settings.istio}
        return [name for name, wanted in names.items() if wanted]

    def _etcd(self) -> Daemon:
        folder = self._launch.folder
        command = (
            *(str(self._launch.programs.etcd), "--data-dir", str(folder / "etcd")),
            *("--listen-client-urls", _ETCD_URL, "--advertise-client-urls", _ETCD_URL),
            *("--listen-peer-urls", _PEER_URL, "--initial-advertise-peer-urls", _PEER_URL),
            *("--initial-cluster", f"default={_PEER_URL}", "--unsafe-no-fsync"),
        )
        ready = _answers(f"{_ETCD_URL}/health")
        return Daemon("etcd", command, folder / "etcd.log", ready)

    def _api_server(self) -> Daemon:
        folder = self._launch.folder
        command = (
            str(self._launch.programs.kube_apiserver),
            f"--etcd-servers={_ETCD_URL}",
            f"--secure-port={API_PORT}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={BRIDGE_ADDRESS}",
            f"--tls-cert-file={folder / 'apiserver.crt'}",
            f"--tls-private-key-file={folder / 'apiserver.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'sa.pub'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            *self._launch.settings.api_server_options,
        )
        log = folder / "kube-apiserver.log"
        return Daemon("kube-apiserver", command, log, self._api.is_ready)

    def _controller_manager(self) -> Daemon:
        folder = self._launch.folder
        command = (
            str(self._launch.programs.kube_controller_manager),
            f"--kubeconfig={folder / 'inside.kubeconfig'}",
            f"--service-account-private-key-file={folder / 'sa.key'}",
            f"--root-ca-file={folder / 'apiserver.crt'}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--secure-port=10257",
            f"--controllers={','.join(_CONTROLLERS)}",
        )
        log = folder / "kube-controller-manager.log"
        return Daemon("kube-controller-manager", command, log, _listens(10257))

    def _istiod(self) -> Daemon:
        folder = self._launch.folder
        command = (
            *(str(self._launch.programs.istiod), "discovery"),
            f"--kubeconfig={folder / 'inside.kubeconfig'}",
            f"--meshConfig={folder / 'mesh.json'}",
            *("--domain", "cluster.local", "--grpcAddr", ":15010"),
            *("--httpAddr", "127.0.0.1:8080", "--monitoringAddr", "127.0.0.1:15014"),
            *("--secureGRPCAddr", f"{BRIDGE_ADDRESS}:15012", "--httpsAddr="),
            "--log_output_level=default:info",
        )
        env = {**_ISTIOD_ENV, **self._launch.settings.istiod_env}
        ready = _answers("http://127.0.0.1:8080/ready")
        log = folder / "istiod.log"
        return Daemon("istiod", command, log, ready, env, cwd=folder)


def _answers(url: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    return check


def _listens(port: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        with socket.socket() as tried:
            tried.setblocking(False)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_connect(tried, ("127.0.0.1", port))
                return True
        return False

    return check
