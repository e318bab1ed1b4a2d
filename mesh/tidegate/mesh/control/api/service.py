"""``tidegate.mesh.v1.MeshService``: shows the mesh and shifts its traffic."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from tidegate.chassis.errors import InvalidArgument, NotFound, Unavailable
from tidegate.errors import TidegateError
from tidegate.istio import EditError
from tidegate.istio.editing import shifts as edits
from tidegate.istio.editing.split_reading import read_split
from tidegate.mesh.control.api.changes import event_message, preview, service_error
from tidegate.mesh.control.api.request_reading import (
    description_of,
    read_set_traffic,
    read_shift,
    seconds_of,
    stage_deadline_s,
)
from tidegate.mesh.control.api.request_records import finished_requests
from tidegate.mesh.control.api.splits import (
    InForce,
    description_of_split,
    field_of_split,
    traffic_message,
)
from tidegate.mesh.control.api.status import STATES, ready_subsets, status_of
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tidegate.chassis import ServicerContext
    from tidegate.mesh.ads import Distribution
    from tidegate.mesh.control.controller import Controller
    from tidegate.mesh.control.endpoints.topology import Topology
    from tidegate.mesh.control.transitions.drainer import RequestsInProgress
    from tidegate.mesh.telemetry import RequestLog

__all__ = ["SERVICE_NAME", "MeshServicer"]

SERVICE_NAME: Final = mesh_pb2.DESCRIPTOR.services_by_name["MeshService"].full_name

_DRAIN_RANGE_S: Final = (0.0, 86400.0)
# Proxies report every 0.2 s once they are asked; the first report takes 0.2 s longer.
_COUNT_S: Final = 0.7


class MeshServicer(mesh_pb2_grpc.MeshServiceServicer):
    """Implements MeshService.

    Args:
        controller: Changes the mesh.
        distribution: Gives the proxies.
        topology: Gives the hosts.
        in_progress: Counts the requests that run.
        requests: The records of finished requests.
    """

    def __init__(
        self,
        controller: Controller,
        distribution: Distribution,
        topology: Topology,
        in_progress: RequestsInProgress,
        requests: RequestLog,
    ) -> None:
        self._controller = controller
        self._distribution = distribution
        self._topology = topology
        self._in_progress = in_progress
        self._requests = requests
        self._shutting_down = asyncio.Event()

    def shut_down(self) -> None:
        """Ends the streams that never end by themselves. Call it when the server drains."""
        self._shutting_down.set()

    async def GetStatus(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.GetStatusRequest, context: ServicerContext
    ) -> mesh_pb2.GetStatusResponse:
        """Returns the state of the mesh."""
        del context
        self._check_running()
        if request.count_requests:
            hosts = self._topology.hosts(self._controller.served.objects)
            clusters = [name for _, subsets in hosts for each in subsets for name in each.clusters]
            with self._in_progress.watch(clusters):
                await asyncio.sleep(_COUNT_S)
                return self._status()
        return self._status()

    async def Shift(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.ShiftRequest, context: ServicerContext
    ) -> AsyncIterator[mesh_pb2.ShiftResponse]:
        """Shifts traffic, and sends the events."""
        del context
        self._check_running()
        shift = read_shift(request)
        deadline_s = stage_deadline_s(request)
        self._check_host(shift.host)
        try:
            if request.dry_run:
                yield mesh_pb2.ShiftResponse(preview=self._preview(shift, force=request.force))
                return
            events = self._controller.shift(
                shift, description_of(shift), deadline_s, force=request.force
            )
            async for event in events:
                yield mesh_pb2.ShiftResponse(event=event_message(event))
        except TidegateError as error:
            raise service_error(error) from error

    async def Reset(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.ResetRequest, context: ServicerContext
    ) -> AsyncIterator[mesh_pb2.ResetResponse]:
        """Undoes every shift, and sends the events."""
        del context
        self._check_running()
        deadline_s = stage_deadline_s(request)
        try:
            if request.dry_run:
                yield mesh_pb2.ResetResponse(preview=self._preview(None, force=request.force))
                return
            async for event in self._controller.reset(deadline_s, force=request.force):
                yield mesh_pb2.ResetResponse(event=event_message(event))
        except TidegateError as error:
            raise service_error(error) from error

    async def GetTraffic(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.GetTrafficRequest, context: ServicerContext
    ) -> mesh_pb2.GetTrafficResponse:
        """Returns how the requests of a host are divided."""
        del context
        self._check_running()
        if not request.host:
            raise InvalidArgument.of("host", "is empty; name a host")
        self._check_host(request.host)
        found = read_split(self._controller.objects_of(request.host), request.host)
        return traffic_message(found, ready_subsets(self._controller, self._topology, found.host))

    async def SetTraffic(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.SetTrafficRequest, context: ServicerContext
    ) -> AsyncIterator[mesh_pb2.SetTrafficResponse]:
        """Divides the requests of a host, and sends the events."""
        del context
        self._check_running()
        split, owner = read_set_traffic(request)
        deadline_s = stage_deadline_s(request)
        self._check_host(request.host)
        in_force = InForce()
        try:
            async for event in self._controller.set_split(
                *(request.host, split, owner),
                description_of_split(request.host, split, owner),
                deadline_s,
                keep=request.on_deadline == mesh_pb2.ON_DEADLINE_KEEP,
            ):
                in_force.take(event)
                yield mesh_pb2.SetTrafficResponse(event=event_message(event))
        except EditError as error:
            raise InvalidArgument.of(
                field_of_split(error), str(error), reason="CANNOT_EDIT"
            ) from error
        except TidegateError as error:
            raise service_error(error) from error
        yield mesh_pb2.SetTrafficResponse(in_force=in_force.message())

    async def DrainEndpoint(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.DrainEndpointRequest, context: ServicerContext
    ) -> mesh_pb2.DrainEndpointResponse:
        """Takes an endpoint out of use."""
        del context
        self._check_running()
        deadline_s = None
        if request.HasField("deadline"):
            deadline_s = seconds_of(request.deadline, "deadline", *_DRAIN_RANGE_S)
        drained = await self._controller.drain(request.address, deadline_s)
        return mesh_pb2.DrainEndpointResponse(
            drained=not drained.reason,
            stranded_requests=drained.stranded,
            reason=drained.reason,
        )

    async def UndrainEndpoint(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.UndrainEndpointRequest, context: ServicerContext
    ) -> mesh_pb2.UndrainEndpointResponse:
        """Takes an endpoint into use again."""
        del context
        self._check_running()
        self._controller.undrain(request.address)
        known = self._controller.endpoints.statuses[request.address]
        return mesh_pb2.UndrainEndpointResponse(state=STATES[known.state])

    async def WatchRequests(  # noqa: N802 - the proto's name
        self, request: mesh_pb2.WatchRequestsRequest, context: ServicerContext
    ) -> AsyncIterator[mesh_pb2.WatchRequestsResponse]:
        """Sends records of requests as they finish."""
        sent = finished_requests(self._requests, request, context, self._shutting_down)
        async with aclosing(sent) as responses:
            async for each in responses:
                yield each

    def _status(self) -> mesh_pb2.GetStatusResponse:
        return status_of(self._controller, self._distribution, self._topology, self._in_progress)

    def _preview(self, shift: edits.Shift | None, *, force: bool) -> mesh_pb2.Preview:
        change = self._controller.propose(shift, force=force)
        return preview(change, self._controller.served.compiled.resources)

    def _check_running(self) -> None:
        if not self._controller.is_running:
            raise Unavailable("the controller is starting or shutting down", retry_after_s=1.0)

    def _check_host(self, host: str) -> None:
        try:
            edits.find_host(self._controller.objects_of(host), host)
        except EditError as error:
            raise NotFound(str(error), reason="HOST_UNKNOWN") from error
