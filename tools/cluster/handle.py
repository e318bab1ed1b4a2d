"""A running test cluster, as tests and `make cluster` see it.

The cluster is one process with namespaces of its own (`cluster.process`). It ends with the process
that started it, in whatever way that one ends. The methods open a connection for each call, so one
cluster serves tests with event loops of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from cluster.kube_api import ApiError, KubeApi, Manifest, collection, path_of
from cluster.messages import Command, Launch, Reply, Started
from cluster.objects import namespace
from cluster.settings import (
    ROOT,
    ClusterError,
    ClusterSettings,
    Programs,
    mesh_config,
    missing_parts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

__all__ = ["TestCluster"]

_UNSHARE: Final = (
    *("unshare", "--pid", "--net", "--mount", "--fork", "--kill-child", "--mount-proc"),
)
_MAX_REPLY_BYTES: Final = 1 << 24
_STOP_S: Final = 20.0
_POLL_S: Final = 0.05
_WAIT_S: Final = 60.0
# Not the cluster's own: an applied Namespace keeps the label that puts it into the mesh.
_USER: Final = "kubectl"


class TestCluster:
    """A running cluster.

    Attributes:
        folder: Its folder: the logs of the servers, and `pods/NAMESPACE/POD/CONTAINER.log`.
        kubeconfig: A kubeconfig of its administrator that works on this machine.
        addresses: Forwarded addresses of the control plane: `etcd`, `kube-apiserver`,
            `istiod-xds` (plaintext), `istiod-http` and `istiod-monitoring`.
    """

    __test__ = False

    def __init__(
        self, folder: Path, token: str, started: Started, settings: ClusterSettings
    ) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.addresses = started.addresses
        self._token = token
        self._settings = settings
        self._control = started.control

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path, settings: ClusterSettings | None = None) -> Iterator[Self]:
        """Starts a cluster, and ends it with everything that runs in it.

        Args:
            folder: A folder of its own for logs and data.
            settings: Its settings.

        Raises:
            ClusterError: This machine lacks something, or a server does not start.
        """
        if missing := missing_parts():
            raise ClusterError(missing)
        settings = settings or ClusterSettings()
        token = secrets.token_hex(16)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            Path("/proc/self/ns/net").open("rb") as host,
            _running(folder, host.fileno()) as pipes,
        ):
            launch = Launch(
                folder=folder.resolve(),
                host_network=host.fileno(),
                token=token,
                path=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                programs=Programs.found(),
                settings=settings,
                mesh_config=mesh_config(settings),
            )
            assert pipes.stdin is not None and pipes.stdout is not None  # noqa: PT018
            pipes.stdin.write(launch.encoded())
            pipes.stdin.flush()
            line = pipes.stdout.readline()
            if not line:
                log = (folder / "cluster.log").read_text()
                raise ClusterError(f"the cluster's process ended: {log[-3000:]}")
            started = msgspec.json.decode(line, type=Started)
            if started.error:
                raise ClusterError(started.error)
            yield cls(folder, token, started, settings)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, folder: Path, settings: ClusterSettings | None = None
    ) -> AsyncIterator[Self]:
        """Like `started`, without blocking the event loop.

        Raises:
            ClusterError: This machine lacks something, or a server does not start.
        """
        context = cls.started(folder, settings)
        cluster = await asyncio.to_thread(context.__enter__)
        try:
            yield cluster
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)

    async def apply(self, *manifests: Mapping[str, Any]) -> list[Manifest]:
        """Applies objects, one after another, by server-side apply with force.

        Returns:
            The objects as the API server has them.

        Raises:
            ApiError: The API server refuses one.
        """
        async with self._api() as api:
            return [await api.apply(each, _USER) for each in manifests]

    async def create_namespace(self, name: str) -> None:
        """Creates a namespace in the mesh, and waits until Pods can run in it."""
        async with self._api() as api:
            await api.apply(namespace(name))
            if self._settings.controllers:
                await _there(api, f"/api/v1/namespaces/{name}/serviceaccounts/default")
            if self._settings.istio:
                await _there(api, f"/api/v1/namespaces/{name}/configmaps/istio-ca-root-cert")

    async def get(self, api_version: str, kind: str, name: str, namespace: str = "") -> Manifest:
        """Reads an object.

        Raises:
            ApiError: There is none (status 404), or the API server does not answer (status 0).
        """
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        path = path_of({"apiVersion": api_version, "kind": kind, "metadata": metadata})
        async with self._api() as api:
            return await api.call("GET", path)

    async def items(
        self, api_version: str, kind: str, namespace: str = "", *, selector: str = ""
    ) -> list[Manifest]:
        """Lists objects, of all namespaces if none is given.

        Args:
            api_version: Their API version.
            kind: Their kind.
            namespace: Their namespace.
            selector: A label selector.

        Raises:
            ApiError: The API server refuses it.
        """
        query = {"labelSelector": selector} if selector else None
        async with self._api() as api:
            path = collection(api_version, kind, namespace)
            return list((await api.call("GET", path, query=query))["items"])

    async def delete(self, api_version: str, kind: str, name: str, namespace: str = "") -> None:
        """Deletes an object in the background.

        Raises:
            ApiError: The API server refuses it.
        """
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        path = path_of({"apiVersion": api_version, "kind": kind, "metadata": metadata})
        async with self._api() as api:
            await api.call("DELETE", path, body={"propagationPolicy": "Background"})

    async def deployed(self, namespace: str, *deployments: str, timeout_s: float = _WAIT_S) -> None:
        """Waits until Deployments have all their replicas, of the newest version, available.

        Raises:
            ClusterError: One has not in time; the message has the statuses of its Pods.
        """
        async with self._api() as api:
            for each in deployments:
                await self._deployed(api, namespace, each, timeout_s)

    async def forward(self, namespace: str, target: str, port: int, *, local_port: int = 0) -> str:
        """Forwards a loopback port to a Service, or to a Pod (`pod/NAME`).

        Each new connection goes to one of the Service's ready Pods. The forwarder stays until the
        cluster ends.

        Args:
            namespace: The namespace of the target.
            target: The name of a Service, or `pod/` and the name of a Pod.
            port: The port of the Service, or of the Pod.
            local_port: The loopback port; 0 takes a free one.

        Returns:
            The address, such as `127.0.0.1:34567`.

        Raises:
            ClusterError: The loopback port is taken.
        """
        address: str = await self._ask(
            "forward", namespace=namespace, target=target, port=port, local_port=local_port
        )
        return address

    async def expose(self, namespace: str, service: str, port: int, target: str) -> str:
        """Makes a server of this machine a Service of the cluster.

        Args:
            namespace: The namespace of the Service.
            service: Its name.
            port: Its port.
            target: The server's loopback address, such as `127.0.0.1:9001`.

        Returns:
            The address at which Pods reach it.
        """
        address: str = await self._ask(
            "expose", namespace=namespace, service=service, port=port, target=target
        )
        return address

    async def execute(self, namespace: str, pod: str, command: Sequence[str]) -> str:
        """Runs a command in the network of a Pod, and returns its output.

        Raises:
            ClusterError: It failed.
        """
        output: str = await self._ask("exec", namespace=namespace, pod=pod, command=list(command))
        return output

    async def signal_pod(
        self, namespace: str, pod: str, number: signal.Signals, container: str = ""
    ) -> None:
        """Sends a signal to a container of a Pod; to the first one if none is named.

        Raises:
            ClusterError: It does not run.
        """
        await self._ask(
            "signal_pod", namespace=namespace, pod=pod, container=container, number=int(number)
        )

    async def kill(self, program: str) -> None:
        """Kills a server of the control plane by SIGKILL.

        Args:
            program: `etcd`, `kube-apiserver`, `kube-controller-manager` or `istiod`.

        Raises:
            ClusterError: It does not run.
        """
        await self._ask("signal", program=program, number=int(signal.SIGKILL))

    async def stop(self, program: str) -> None:
        """Pauses a server of the control plane by SIGSTOP.

        Raises:
            ClusterError: It does not run.
        """
        await self._ask("signal", program=program, number=int(signal.SIGSTOP))

    async def cont(self, program: str) -> None:
        """Continues a paused server of the control plane.

        Raises:
            ClusterError: It does not run.
        """
        await self._ask("signal", program=program, number=int(signal.SIGCONT))

    async def restart(self, program: str) -> None:
        """Starts a server of the control plane again, and waits until it serves.

        Raises:
            ClusterError: It does not start.
        """
        await self._ask("restart", program=program)

    async def processes(self) -> list[str]:
        """The process ids, as the cluster sees them, and command lines of all its processes."""
        found: list[str] = await self._ask("processes")
        return found

    def pod_log(self, namespace: str, pod: str, container: str) -> str:
        """The output of a container, as far as it has got."""
        return (self.folder / "pods" / namespace / pod / f"{container}.log").read_text()

    def _api(self) -> contextlib.AbstractAsyncContextManager[KubeApi]:
        url = f"https://{self.addresses['kube-apiserver']}"
        return KubeApi.opened(url, self.folder / "apiserver.crt", self._token)

    async def _ask(self, name: str, **arguments: Any) -> Any:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._control, limit=_MAX_REPLY_BYTES
        )
        try:
            command = Command(token=self._token, name=name, arguments=arguments)
            writer.write(msgspec.json.encode(command) + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if not line:
            raise ClusterError(f"the cluster's process ended; see {self.folder}/cluster.log")
        reply = msgspec.json.decode(line, type=Reply)
        if reply.error:
            raise ClusterError(f"{name}: {reply.error}")
        return reply.value

    async def _deployed(self, api: KubeApi, namespace: str, name: str, timeout_s: float) -> None:
        path = f"{collection('apps/v1', 'Deployment', namespace)}/{name}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    if _is_deployed(await api.call("GET", path)):
                        return
                    await asyncio.sleep(_POLL_S)
        pods = (await api.call("GET", collection("v1", "Pod", namespace)))["items"]
        seen = [f"{each['metadata']['name']}: {each['status']}" for each in pods]
        raise ClusterError(f"Deployment {namespace}/{name} is not available: {'; '.join(seen)}")


@contextlib.contextmanager
def _running(folder: Path, descriptor: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the cluster's process; closing its standard input ends it."""
    command = (*_UNSHARE, sys.executable, "-m", "cluster.process")
    search = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(descriptor,),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))},
            # Ctrl-C is for the starting process, which then closes standard input.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _is_deployed(deployment: Manifest) -> bool:
    wanted = deployment["spec"].get("replicas", 1)
    status = deployment.get("status", {})
    counts = {status.get(each, 0) for each in ("replicas", "updatedReplicas", "availableReplicas")}
    is_seen: bool = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return is_seen and counts == {wanted}


async def _there(api: KubeApi, path: str) -> None:
    async with asyncio.timeout(_WAIT_S):
        while True:
            try:
                await api.call("GET", path)
            except ApiError as error:
                if error.status not in (0, 404):
                    raise
                await asyncio.sleep(_POLL_S)
            else:
                return
