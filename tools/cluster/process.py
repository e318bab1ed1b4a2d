"""The process of one test cluster: the first process of namespaces of its own.

    unshare --pid --net --mount --fork --kill-child --mount-proc python -m cluster.process

It reads one line of JSON (`Launch`) from standard input, prints one line (`Started`) when the
cluster is ready, and then takes commands on a loopback port of the namespace that started it. It
ends when standard input closes, which the kernel does even if the starting process is killed. As it
is the first process of its PID namespace, the kernel then ends every process of the cluster, and
with the last one go the network namespaces and mounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvloop

from cluster.control_plane import API_PORT, PORTS, ControlPlane
from cluster.dns_standin import DNS_PORT, DnsStandIn
from cluster.keys import kubeconfig, write_keys
from cluster.kube_api import ApiError, KubeApi
from cluster.kubelet_api import serve_kubelet_api
from cluster.kubelet_standin import KubeletStandIn
from cluster.messages import Command, Launch, Reply, Started
from cluster.networks import Network, forward, listening_socket, set_up_bridge
from cluster.objects import first_objects, istio_definitions
from cluster.service_table import ServiceTable
from cluster.settings import BINARIES, BRIDGE_ADDRESS, ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_LOOPBACK: Final = "127.0.0.1"
_MAX_COMMAND_BYTES: Final = 1 << 20


class ClusterProcess:
    """One running cluster.

    Args:
        launch: What it is made of.
        api: A client of its API server.
        tasks: Owns its tasks.
    """

    def __init__(self, launch: Launch, api: KubeApi, tasks: asyncio.TaskGroup) -> None:
        self._launch = launch
        self._api = api
        self._tasks = tasks
        self._host = Network(launch.host_network)
        self._control_plane = ControlPlane(launch, api)
        self._services = ServiceTable(api)
        self._kubelet = KubeletStandIn(launch, api, tasks)

    async def start(self) -> Started:
        """Starts every part, and returns once all of them serve.

        Raises:
            ClusterError: A server does not start.
            TimeoutError: A server does not serve in time.
        """
        folder = self._launch.folder
        async with asyncio.timeout(self._launch.settings.start_timeout_s):
            addresses = {name: await self._forward_port(port) for name, port in PORTS.items()}
            certificate, token = folder / "apiserver.crt", self._launch.token
            url = f"https://{addresses['kube-apiserver']}"
            (folder / "kubeconfig").write_text(kubeconfig(url, certificate, token))
            await self._control_plane.start_storage()
            await self._apply_all(istio_definitions(self._launch.programs.crds))
            await self._apply_all(first_objects(self._launch.settings))
            await self._control_plane.start_controllers()
            self._tasks.create_task(self._services.follow_services())
            self._tasks.create_task(self._services.follow_slices())
            await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: DnsStandIn(self._services), local_addr=(BRIDGE_ADDRESS, DNS_PORT)
            )
            await serve_kubelet_api(folder, self._kubelet.is_running)
            self._tasks.create_task(self._kubelet.run())
            await self._control_plane.ready()
        return Started(control=await self._listen(), addresses=addresses)

    async def do_signal(self, program: str, number: int) -> None:
        """Sends a signal to a server of the control plane."""
        await self._daemon(program).send(signal.Signals(number))

    async def do_restart(self, program: str) -> None:
        """Starts a server of the control plane again, and waits until it serves."""
        await self._daemon(program).restart()

    async def do_forward(self, namespace: str, target: str, port: int, local_port: int) -> str:
        """Forwards a loopback port to a Service (`NAME`) or a Pod (`pod/NAME`)."""
        if target.startswith("pod/"):
            pod = target.removeprefix("pod/")

            def choose() -> tuple[str, int]:
                return self._kubelet.address(namespace, pod), port
        else:

            def choose() -> tuple[str, int]:
                found = self._services.endpoints(namespace, target, port)
                if not found:
                    raise ConnectionRefusedError(f"{namespace}/{target} has no ready endpoint")
                return random.choice(found)

        return await self._forward(choose, local_port)

    async def do_expose(self, namespace: str, service: str, port: int, target: str) -> str:
        """Makes a loopback address of the starting namespace a Service of the cluster."""
        host, _, number = target.rpartition(":")

        async def connect() -> socket.socket:
            made = await self._host.call(_new_socket)
            await asyncio.get_running_loop().sock_connect(made, (host, int(number)))
            return made

        listener = listening_socket(BRIDGE_ADDRESS)
        own = listener.getsockname()[1]
        self._tasks.create_task(forward(listener, connect))
        metadata = {"name": service, "namespace": namespace}
        await self._api.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"ports": [{"name": "grpc", "port": port, "targetPort": own}]},
            }
        )
        await self._api.apply(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    **metadata,
                    "labels": {
                        "kubernetes.io/service-name": service,
                        "endpointslice.kubernetes.io/managed-by": "test-cluster",
                    },
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [BRIDGE_ADDRESS], "conditions": {"ready": True}}],
                "ports": [{"name": "grpc", "port": own, "protocol": "TCP"}],
            }
        )
        return f"{BRIDGE_ADDRESS}:{own}"

    async def do_exec(self, namespace: str, pod: str, command: list[str]) -> str:
        """Runs a command in the network namespace of a Pod, and returns its output."""
        return await self._kubelet.execute(namespace, pod, command)

    async def do_signal_pod(self, namespace: str, pod: str, container: str, number: int) -> None:
        """Sends a signal to a container of a Pod."""
        self._kubelet.signal(namespace, pod, container, signal.Signals(number))

    async def do_processes(self) -> list[str]:
        """The command lines of every process of the cluster."""
        return await asyncio.to_thread(_command_lines)

    def _daemon(self, program: str) -> Any:
        daemons = self._control_plane.daemons
        if program not in daemons:
            raise ClusterError(f"there is no server {program}; there are {', '.join(daemons)}")
        return daemons[program]

    async def _apply_all(self, manifests: list[dict[str, Any]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for each in manifests:
                tasks.create_task(self._apply_soon(each))

    async def _apply_soon(self, manifest: dict[str, Any]) -> None:
        """Applies an object. A new API server has some kinds and namespaces a little later."""
        while True:
            try:
                await self._api.apply(manifest)
            except ApiError as error:
                if error.status not in (0, 403, 404, 409, 429, 500, 503):
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    async def _forward_port(self, port: int) -> str:
        return await self._forward(lambda: (_LOOPBACK, port))

    async def _forward(self, choose: Callable[[], tuple[str, int]], local_port: int = 0) -> str:
        async def connect() -> socket.socket:
            made = _new_socket()
            try:
                await asyncio.get_running_loop().sock_connect(made, choose())
            except BaseException:
                made.close()
                raise
            return made

        try:
            listener = await self._host.call(lambda: listening_socket(_LOOPBACK, local_port))
        except OSError as error:
            raise ClusterError(
                f"cannot listen on {_LOOPBACK}:{local_port}, which another program may use:"
                f" {os.strerror(error.errno or 0)}"
            ) from error
        self._tasks.create_task(forward(listener, connect))
        return f"{_LOOPBACK}:{listener.getsockname()[1]}"

    async def _listen(self) -> int:
        listener = await self._host.call(lambda: listening_socket(_LOOPBACK))
        server = await asyncio.start_server(self._serve, sock=listener, limit=_MAX_COMMAND_BYTES)
        self._tasks.create_task(server.serve_forever())
        return int(listener.getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            reply = await self._obey(await reader.readline())
            writer.write(msgspec.json.encode(reply) + b"\n")
            await writer.drain()
        writer.close()

    async def _obey(self, line: bytes) -> Reply:
        try:
            command = msgspec.json.decode(line, type=Command)
            if command.token != self._launch.token:
                return Reply(error="wrong token")
            method: Callable[..., Awaitable[Any]] = getattr(self, f"do_{command.name}")
            return Reply(value=await method(**command.arguments))
        except (ClusterError, OSError, TimeoutError, msgspec.DecodeError) as error:
            return Reply(error=str(error) or repr(error))
        except Exception:  # noqa: BLE001 - the caller gets it
            return Reply(error=traceback.format_exc())


def _command_lines() -> list[str]:
    found = []
    for each in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes().split(b"\0")
            # A process that has ended, and that nobody has waited for, has no command line.
            if line := b" ".join(words).decode(errors="replace").strip():
                found.append(f"{each.name} {line}")
    return found


def _new_socket() -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


async def _run(launch: Launch) -> None:
    _mount_own_run()
    _copy_programs(launch)
    write_keys(launch.folder, launch.token, (_LOOPBACK, BRIDGE_ADDRESS))
    inside = kubeconfig(
        f"https://{_LOOPBACK}:{API_PORT}", launch.folder / "apiserver.crt", launch.token
    )
    (launch.folder / "inside.kubeconfig").write_text(inside)
    (launch.folder / "mesh.json").write_bytes(msgspec.json.encode(launch.mesh_config))
    await set_up_bridge()
    opened = KubeApi.opened(
        f"https://{_LOOPBACK}:{API_PORT}", launch.folder / "apiserver.crt", launch.token
    )
    async with opened as api, asyncio.TaskGroup() as tasks:
        cluster = ClusterProcess(launch, api, tasks)
        try:
            started = await cluster.start()
        except (ClusterError, TimeoutError) as error:
            started = Started(error=f"{type(error).__name__}: {error}; see {launch.folder}/*.log")
        sys.stdout.buffer.write(msgspec.json.encode(started) + b"\n")
        sys.stdout.buffer.flush()
        await asyncio.get_running_loop().create_future()


def _mount_own_run() -> None:
    """Hides /run of the machine: the names of namespaces, and secrets, are the cluster's own."""
    resolver = Path("/etc/resolv.conf").resolve()
    for command in (
        ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"),
        ("mkdir", "-p", "/run/netns", "/run/secrets", "/run/lock", str(BINARIES)),
        ("mkdir", "-p", str(resolver.parent)),
        ("touch", str(resolver)),
    ):
        os.spawnlp(os.P_WAIT, command[0], *command)


def _copy_programs(launch: Launch) -> None:
    programs = launch.programs
    for name, source in (
        ("pilot-agent", programs.pilot_agent),
        ("envoy", programs.envoy),
        ("envoy_bootstrap.json", programs.envoy_bootstrap),
    ):
        target = BINARIES / name
        target.touch(mode=0o755)
        os.spawnlp(os.P_WAIT, "mount", "mount", "--bind", str(source), str(target))


def main() -> None:
    """Runs a cluster until standard input closes."""
    launch = Launch.decoded(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        uvloop.run(_run(launch))
    except Exception:  # noqa: BLE001 - the log of the cluster has it
        traceback.print_exc()
    finally:
        # The kernel ends all other processes of the namespace with this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
