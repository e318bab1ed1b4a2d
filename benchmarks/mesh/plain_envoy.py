"""Runs a second Envoy with the same objects, without access log and without tracing."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import grpc
from local_mesh import LocalMeshError, free_ports

from tidegate.istio import read_files
from tidegate.mesh.ads import Distribution
from tidegate.mesh.ads.servicer import AdsServicer
from tidegate.mesh.compiler import Compiler, EndpointState, MeshSettings
from tidegate.mesh.envoy import Admin, AdminError
from tidegate.mesh.resources import Change, ProxyKind
from tidegate.mesh.telemetry import LoadReportingServicer, LoadReports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from local_mesh import LocalMesh

    from tidegate.istio import IstioObjects

__all__ = ["plain_envoy"]

_READY_WITHIN_S: Final = 30.0
_POLL_S: Final = 0.05


@asynccontextmanager
async def plain_envoy(local_mesh: LocalMesh, endpoints: Sequence[str]) -> AsyncIterator[str]:
    """Runs a second Envoy in front of the servers of a mesh.

    Args:
        local_mesh: The mesh.
        endpoints: Its servers, ``HOST:PORT``.

    Yields:
        The second Envoy's address for vision.

    Raises:
        LocalMeshError: The Envoy did not start.
    """
    (port,) = free_ports(1)
    services = local_mesh.folder / "services.yaml"
    objects = read_files([local_mesh.objects, services, local_mesh.workloads]).objects
    resources = (
        Compiler(MeshSettings())
        .compile(
            _moved(objects, int(local_mesh.vision.rpartition(":")[2]), port),
            dict.fromkeys(endpoints, EndpointState.HEALTHY),
        )
        .resources[ProxyKind.ENVOY]
    )
    distribution = Distribution()
    distribution.apply(ProxyKind.ENVOY, Change(put=tuple(resources.values())))
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    AdsServicer(distribution).register(server)
    LoadReportingServicer(LoadReports()).register(server)
    ads = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    folder = local_mesh.folder / "plain"
    folder.mkdir()
    try:
        async with _envoy(folder, ads):
            yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def _envoy(folder: Path, ads: int) -> AsyncIterator[None]:
    admin_file = folder / "admin"
    with (folder / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidegate.mesh.envoy", "--concurrency=2"),
            *(f"--controller=127.0.0.1:{ads}", f"--admin-file={admin_file}"),
            f"--bootstrap-file={folder / 'bootstrap.json'}",
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(_READY_WITHIN_S):
            while not await _is_ready(admin_file):  # noqa: ASYNC110 - Envoy can only be polled
                await asyncio.sleep(_POLL_S)
        yield
    except TimeoutError:
        log_text = (folder / "envoy.log").read_text(errors="replace")
        raise LocalMeshError(f"the plain Envoy is not ready:\n{log_text[-2000:]}") from None
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _is_ready(admin_file: Path) -> bool:
    if not (admin_file.exists() and (address := admin_file.read_text())):
        return False
    try:
        return await Admin(address).is_live()
    except AdminError:
        return False


def _moved(objects: IstioObjects, old: int, new: int) -> IstioObjects:
    """Returns the objects with the Gateway's port changed, and without the other Gateways."""
    moved = []
    for gateway in objects.gateways.values():
        servers = tuple(
            dataclasses.replace(each, port=dataclasses.replace(each.port, number=new))
            for each in gateway.servers
            if each.port.number == old
        )
        if servers:
            moved.append(dataclasses.replace(gateway, servers=servers))
    others = [name for name in objects.gateways if name not in {each.name for each in moved}]
    return objects.with_(*moved).without(*others)
