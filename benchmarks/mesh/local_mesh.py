"""Runs the repository's mesh with the real ``tidegate up``, in a separate folder, on free ports."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from tidegate.mesh.supervisor import StateDirectory
from tidegate.mesh.supervisor.process.state_machine import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from tidegate.mesh.supervisor.state.snapshot import ServerSnapshot, Snapshot

__all__ = ["MODEL", "ROOT", "LocalMesh", "LocalMeshError", "VisionServer", "free_ports"]

ROOT: Final = Path(__file__).resolve().parents[2]
MODEL: Final = "efficientnet-lite0"

_PROGRAM: Final = (sys.executable, "-c", "from tidegate.cli.main import main; main()")
_LOADED_WITHIN_S: Final = 300.0
_STOPPED_WITHIN_S: Final = 90.0
_POLL_S: Final = 0.05


class LocalMeshError(RuntimeError):
    """The mesh did not start, or a command to it failed."""


@dataclass(frozen=True, slots=True)
class VisionServer:
    """A vision server.

    Attributes:
        subset: The value of its label ``version``.
        model_version: The version of the model that it serves.
        extra: More keys of its entry in ``tidegate.yaml``.
    """

    subset: str
    model_version: str
    extra: Mapping[str, Any] = field(default_factory=dict)


class LocalMesh:
    """A mesh on this machine.

    Args:
        folder: An empty folder.
        models: The model repository.
        servers: The vision servers, by name.
        with_llm: Whether the mesh also serves the language model.
        settings: More keys of ``mesh.controller`` in ``tidegate.yaml``.

    Attributes:
        folder: The folder in which the mesh runs.
        objects: The folder of its Istio objects.
        workloads: The folder of its WorkloadEntries.
        vision: Envoy's address for vision.
        llm: Envoy's address for the language model.
        controller: The controller's gRPC address.
        controller_metrics: The controller's metrics address.
        envoy_admin: The address of Envoy's admin interface.
    """

    def __init__(
        self,
        folder: Path,
        models: Path,
        servers: Mapping[str, VisionServer],
        *,
        with_llm: bool,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.objects = folder / "istio"
        self._state = StateDirectory(folder / ".tidegate")
        self.workloads = self._state.workloads
        ports = free_ports(6)
        vision, llm, controller, metrics, traces, admin = ports
        self.vision, self.llm = f"127.0.0.1:{vision}", f"127.0.0.1:{llm}"
        self.controller = f"127.0.0.1:{controller}"
        self.controller_metrics = f"127.0.0.1:{metrics}"
        self.envoy_admin = f"127.0.0.1:{admin}"
        self._write_objects(vision, llm, with_llm=with_llm)
        entries: dict[str, Any] = {
            name: {
                "kind": "vision",
                "labels": {"app": "vision", "version": each.subset},
                "settings": {
                    "model_repository": str(models),
                    "load": f"{MODEL}/{each.model_version}",
                },
                **each.extra,
            }
            for name, each in servers.items()
        }
        ingress = {"vision": vision}
        if with_llm:
            ingress["llm"] = llm
            entries["llm"] = {
                "kind": "llm",
                "labels": {"app": "llm", "version": "v1"},
                "settings": {"model_repository": str(models)},
            }
        mesh = {
            "objects": ["istio", "services.yaml"],
            "ingress": ingress,
            "controller": {
                "grpc_port": controller,
                "metrics_port": metrics,
                "traces_port": traces,
                **(settings or {}),
            },
            "envoy": {"admin_port": admin},
            "router": {"grpc_port": 0, "metrics_port": 0},
        }
        config = yaml.safe_dump({"mesh": mesh, "servers": entries}, sort_keys=False)
        (folder / "tidegate.yaml").write_text(config)

    def _write_objects(self, vision: int, llm: int, *, with_llm: bool) -> None:
        self.objects.mkdir()
        for file in (ROOT / "mesh" / "istio" / "base" / "traffic").glob("*.yaml"):
            if with_llm or file.name != "llm.yaml":
                shutil.copy(file, self.objects)
        gateway = self.objects / "gateway.yaml"
        text = gateway.read_text().replace("number: 8500", f"number: {vision}")
        gateway.write_text(text.replace("number: 8600", f"number: {llm}"))
        shutil.copy(ROOT / "mesh" / "local" / "services.yaml", self.folder)

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """Runs the mesh until the context ends.

        Raises:
            LocalMeshError: The mesh did not start.
        """
        with (self.folder / "up.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(*_PROGRAM, "up"),
                cwd=self.folder,
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            await self._settled(process)
            yield
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOPPED_WITHIN_S)
            except TimeoutError:
                # The guards of its processes end the processes.
                process.kill()
                await process.wait()

    def snapshot(self) -> Snapshot:
        """Returns the state of everything that runs.

        Raises:
            LocalMeshError: Nothing runs.
        """
        found = self._state.running()
        if found is None:
            raise LocalMeshError(f"`tidegate up` has ended:\n{self.logs()}")
        return found

    def server(self, name: str) -> ServerSnapshot:
        """Returns the server of a name; during a restart, the one that the snapshot lists first."""
        return next(each for each in self.snapshot().servers if each.name == name)

    def pid(self, name: str) -> int:
        """Returns the process id of a server.

        Raises:
            LocalMeshError: The server has no process now.
        """
        pid = self.server(name).pid
        if pid is None:
            raise LocalMeshError(f"{name} has no process now")
        return pid

    async def wait_for_restart(self, name: str, old_pid: int, limit_s: float) -> None:
        """Waits until a new process of a server serves, and is routed if it should be.

        Raises:
            LocalMeshError: The server is not back in time.
        """

        def is_back() -> bool:
            now = self.server(name)
            is_other = now.pid not in (None, old_pid)
            return is_other and now.phase is Phase.SERVING and now.routed is not False

        await self.wait_until(is_back, limit_s, f"{name} is not back")

    async def wait_until(
        self, condition: Callable[[], bool], limit_s: float, otherwise: str
    ) -> None:
        """Waits until a condition is true.

        Raises:
            LocalMeshError: It was not true in time; the text begins with `otherwise`.
        """
        try:
            async with asyncio.timeout(limit_s):
                while not condition():  # noqa: ASYNC110 - files raise no events
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            problem = f"{otherwise} after {limit_s:g} s:\n{self.logs()}"
            raise LocalMeshError(problem) from None

    async def tidegate(self, *arguments: str) -> None:
        """Runs a ``tidegate`` command in the folder of the mesh.

        Raises:
            LocalMeshError: The command failed.
        """
        process = await asyncio.create_subprocess_exec(
            *(*_PROGRAM, *arguments),
            cwd=self.folder,
            env=_environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise LocalMeshError(f"tidegate {' '.join(arguments)}: {output.decode()}")

    def logs(self) -> str:
        """Returns the end of every log."""
        files = [self.folder / "up.log", *sorted((self._state.logs).glob("*.log"))]
        return "".join(
            f"\n--- {file.name}\n{file.read_text(errors='replace')[-1500:]}"
            for file in files
            if file.exists()
        )

    async def _settled(self, process: asyncio.subprocess.Process) -> None:
        def is_up() -> bool:
            if process.returncode is not None:
                raise LocalMeshError(f"`tidegate up` has ended:\n{self.logs()}")
            found = self._state.running()
            return found is not None and found.settled and not found.unrouted

        await self.wait_until(is_up, _LOADED_WITHIN_S, "not every server serves")
        for each in self.snapshot().servers:
            if each.phase is not Phase.SERVING:
                raise LocalMeshError(f"{each.name} is {each.phase}:\n{self.logs()}")


def free_ports(count: int) -> Sequence[int]:
    """Returns ports of the loopback address that no process listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _environment() -> dict[str, str]:
    """Returns the environment without settings, which would change the mesh."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "OTEL_"))}
