"""Changes the mesh as its users do, and records which weights are in effect at which time."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
from local_mesh import LocalMeshError

from tidegate.istio import plan_changes, read_files
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from load import Load
    from local_mesh import LocalMesh
    from weight_history import WeightChange, WeightHistory

    from tidegate.istio import IstioObjects

__all__ = ["HOST", "VERSIONS", "ChangeRunner", "Weights"]

HOST: Final = "vision.models.svc.cluster.local"
VERSIONS: Final = {"v1": "1-fp32", "v2": "1-int8", "v3": "1-bf16"}
"""The version of the model that the servers of each subset have."""

Weights = dict[str, int]
"""Weights by subset; subsets without weight are included."""

_POLL_S: Final = 0.02
_LIMIT_S: Final = 60.0
_MOST_PROBLEMS: Final = 20
_DIGITS: Final = 6


@dataclass
class ChangeRunner:
    """Changes the mesh and measures how long each change takes.

    Attributes:
        local_mesh: The mesh.
        channel: Channel to its controller.
        weight_history: Records the weights.
        load: Records the current change beside each failed call.
        times_ms: Time of each change until every proxy had acknowledged it, by kind.
        problems: Descriptions of the changes that failed.
    """

    local_mesh: LocalMesh
    channel: grpc.aio.Channel
    weight_history: WeightHistory
    load: Load
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mesh = mesh_pb2_grpc.MeshServiceStub(self.channel)

    async def attempt(self, what: str, change: Awaitable[object]) -> bool:
        """Makes a change, and records a problem when it fails.

        Returns:
            Whether the change succeeded.

        Raises:
            LocalMeshError: Too many changes have failed for the run to be useful.
        """
        self.load.during = what
        try:
            await change
        except grpc.aio.AioRpcError as error:
            self._note(f"{what}: {error.code().name}: {error.details()}")
        except (LocalMeshError, TimeoutError) as error:
            self._note(f"{what}: {error!r}")
        else:
            return True
        return False

    def time(self, kind: str, began_s: float) -> None:
        """Records how long a change took."""
        self.times_ms.setdefault(kind, []).append((time.perf_counter() - began_s) * 1000)

    async def shift(self, weights: Weights) -> None:
        """Shifts traffic with MeshService.Shift, and returns when every proxy has acknowledged."""
        change = self.request_weights(weights)
        began_s = time.perf_counter()
        async for _ in self.mesh.Shift(shift_request(weights)):
            pass
        self.time("weights", began_s)
        self.acknowledge(change)

    async def set_split(self, split: mesh_pb2.TrafficSplit, owner: str) -> None:
        """Divides all requests with MeshService.SetTraffic, and returns when that is in force."""
        change = self.request_weights({each.subset: int(each.weight) for each in split.weights})
        request = mesh_pb2.SetTrafficRequest(host=HOST, split=split, owner=owner)
        began_s = time.perf_counter()
        async for _ in self.mesh.SetTraffic(request):
            pass
        self.time("split", began_s)
        self.acknowledge(change)

    async def edit(
        self, change: Callable[[IstioObjects], IstioObjects], weights: Weights | None = None
    ) -> None:
        """Edits the object files, and returns when every proxy has acknowledged the edit.

        Args:
            change: Returns the edited objects.
            weights: The weights after the edit, if the edit changes any.

        Raises:
            LocalMeshError: The controller did not make the change.
        """
        before = await self.status()
        requested = self.request_weights(weights) if weights else None
        began_s = time.perf_counter()
        loaded = read_files([self.local_mesh.objects])
        if changes := plan_changes(loaded, change(loaded.objects)):
            for each in changes:
                each.path.write_bytes(each.after)
        else:
            # The files already say so, but later shifts have overridden them.
            async for _ in self.mesh.Reset(mesh_pb2.ResetRequest()):
                pass
        status = await self._until(
            lambda status: _has_ended(status, before.last_transition.id),
            "an edit was not in effect",
        )
        if status.last_transition.state != mesh_pb2.TRANSITION_STATE_DONE:
            raise LocalMeshError(f"an edit was rolled back: {status.last_transition.reason}")
        self.time("edit", began_s)
        if requested is not None:
            self.acknowledge(requested)

    async def status(self) -> mesh_pb2.GetStatusResponse:
        """Returns the status of the mesh."""
        return await self.mesh.GetStatus(mesh_pb2.GetStatusRequest())

    async def wait_until_synchronized(self) -> None:
        """Waits until Envoy is connected and has acknowledged every resource.

        Raises:
            LocalMeshError: It was not in time.
        """
        await self._until(_is_synchronized, "Envoy was not synchronized")

    async def wait_for_weights(self, weights: Weights) -> None:
        """Waits until the controller has completed a shift whose call was interrupted.

        Raises:
            LocalMeshError: It did not complete in time.
        """

        def is_complete(status: mesh_pb2.GetStatusResponse) -> bool:
            has_ended = not status.HasField("transition") and _is_synchronized(status)
            return has_ended and _shares(status) == _shares_of(weights)

        await self._until(is_complete, f"an interrupted shift to {weights} was not complete")

    def request_weights(self, weights: Weights) -> WeightChange:
        """Records weights that are about to be requested."""
        versions = {VERSIONS[subset] for subset, weight in weights.items() if weight}
        return self.weight_history.request(versions, time.perf_counter())

    def acknowledge(self, change: WeightChange) -> None:
        """Records that every proxy has acknowledged a change."""
        change.acknowledged_s = time.perf_counter()

    async def _until(
        self, condition: Callable[[mesh_pb2.GetStatusResponse], bool], otherwise: str
    ) -> mesh_pb2.GetStatusResponse:
        """Waits until the status meets a condition; the controller may be down meanwhile.

        Raises:
            LocalMeshError: The status did not meet it in time; the text begins with `otherwise`.
        """
        last = "none"
        try:
            async with asyncio.timeout(_LIMIT_S):
                while True:
                    try:
                        status = await self.status()
                    except grpc.aio.AioRpcError as error:
                        last = f"{error.code().name}: {error.details()}"
                    else:
                        if condition(status):
                            return status
                        last = str(status)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise LocalMeshError(
                f"{otherwise} after {_LIMIT_S:g} s; the controller's last answer: {last}\n"
                f"{self.local_mesh.logs()}"
            ) from None

    def _note(self, problem: str) -> None:
        self.problems.append(f"{self.load.now_s():.1f} s: {problem}")
        if len(self.problems) >= _MOST_PROBLEMS:
            raise LocalMeshError("too many changes failed:\n" + "\n".join(self.problems))


def shift_request(weights: Weights) -> mesh_pb2.ShiftRequest:
    """Returns the request that shifts to these weights."""
    request = mesh_pb2.ShiftRequest(host=HOST)
    for subset, weight in weights.items():
        request.weights.add(subset=subset, weight=weight)
    return request


def _shares(status: mesh_pb2.GetStatusResponse) -> dict[str, float]:
    """Returns the share of the host's requests by subset; subsets without one are left out."""
    shares: defaultdict[str, float] = defaultdict(float)
    for route in status.routes:
        for each in route.destinations:
            if each.host == HOST and each.share:
                shares[each.subset] += each.share
    return {subset: round(share, _DIGITS) for subset, share in shares.items()}


def _shares_of(weights: Weights) -> dict[str, float]:
    total = sum(weights.values())
    return {name: round(weight / total, _DIGITS) for name, weight in weights.items() if weight}


def _is_synchronized(status: mesh_pb2.GetStatusResponse) -> bool:
    return bool(status.proxies) and all(each.synchronized for each in status.proxies)


def _has_ended(status: mesh_pb2.GetStatusResponse, before: str) -> bool:
    return status.last_transition.id not in ("", before) and not status.HasField("transition")
