"""The laptop's `TrafficRouter`: it asks the controller of the mesh, over MeshService.

The controller changes the Istio objects in effect stage by stage, and answers when every proxy uses
the split, or when everything is as it was before. The times that it gives are of its own clock. The
proxies run on the same machine, so the records of requests have the same clock.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.client import TidegateRpcError
from tidegate.client._shared.errors import error_of, failure_of_call
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tidegate.rollout.traffic import (
    Applied,
    HostTraffic,
    Knowledge,
    MatchKind,
    Sticky,
    TesterMatch,
    TrafficSplit,
)
from tidegate.traffic.router import TrafficError

__all__ = ["MeshRouter"]

# A healthy proxy takes milliseconds, and one on a busy machine a second.
_URGENT_DEADLINE_S: Final = 5.0
_DECIMALS: Final = 3
_PERMANENT_CODES: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
# Other failed preconditions pass by themselves: a proxy answers again, or the disk has room.
_PERMANENT_REASONS: Final = frozenset({"OBJECTS_REFUSED", "TRAFFIC_OWNED"})


class MeshRouter:
    """Implements `TrafficRouter` for the mesh of ``tidegate up``.

    The calls have no deadline of their own; the caller says how long it waits.

    An `apply` that is cancelled, or whose connection breaks, may still come into force: a change
    that has begun goes on in the controller. To apply the same split again does no harm, and `read`
    tells what is in effect.

    Args:
        channel: A channel to the controller; the caller closes it.
        address: The controller's address, for messages.
        stage_deadline_s: How long each stage of a change may take before it is rolled back; the
            controller's setting unless given.
    """

    def __init__(
        self, channel: grpc.aio.Channel, address: str, *, stage_deadline_s: float | None = None
    ) -> None:
        self._stub = mesh_pb2_grpc.MeshServiceStub(channel)
        self._address = address
        self._stage_deadline_s = stage_deadline_s

    async def read(self, host: str) -> HostTraffic:
        """Returns the traffic of a host; see `TrafficRouter`.

        Raises:
            TrafficError: The host is unknown, or the controller does not answer.
        """
        try:
            found = await self._stub.GetTraffic(mesh_pb2.GetTrafficRequest(host=host))
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        return HostTraffic(
            host=found.host,
            split=_split(found.split),
            versions=tuple(found.subsets),
            owner=found.owner,
            ready=tuple(found.ready_subsets),
            problem=found.problem,
        )

    def may_have_changed(self) -> bool:
        """Whether the next reading may differ from the last one: only the controller knows."""
        return True

    async def apply(
        self, host: str, split: TrafficSplit, owner: str, *, urgent: bool = False
    ) -> Applied:
        """Puts a split in force; returns once every proxy uses it. See `TrafficRouter`.

        An urgent one returns after some seconds although a proxy does not use it, and splits that
        are not urgent give way to it.

        Raises:
            TrafficError: The split is not in force. With an error that is not permanent and comes
                from a broken connection, it may come into force later.
        """
        request = mesh_pb2.SetTrafficRequest(host=host, split=_message(split), owner=owner)
        deadline_s = self._stage_deadline_s
        if urgent:
            request.on_deadline = mesh_pb2.ON_DEADLINE_KEEP
            deadline_s = min(deadline_s or _URGENT_DEADLINE_S, _URGENT_DEADLINE_S)
        if deadline_s is not None:
            request.deadline.FromTimedelta(timedelta(seconds=deadline_s))
        call = self._stub.SetTraffic(request)
        applied: Applied | None = None
        try:
            async for response in call:
                if response.HasField("in_force"):
                    applied = _applied(response.in_force)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        if applied is None:
            raise TrafficError(
                f"the controller at {self._address} ended before {split} is in force"
            )
        return applied

    def _error(self, error: grpc.aio.AioRpcError) -> TrafficError:
        known = error_of(failure_of_call(error, self._address, None))
        permanent = known.code in _PERMANENT_CODES or known.reason in _PERMANENT_REASONS
        return TrafficError(_words(known), permanent=permanent)


def _words(error: TidegateRpcError) -> str:
    """What went wrong, in the controller's words if it answered."""
    return error.failure.message if error.reason else str(error)


def _message(split: TrafficSplit) -> mesh_pb2.TrafficSplit:
    message = mesh_pb2.TrafficSplit(
        weights=(
            mesh_pb2.SubsetWeight(subset=name, weight=weight)
            for name, weight in _rounded(split.weights).items()
        ),
        testers=map(_tester_message, split.testers),
        mirrors=(
            mesh_pb2.Mirror(subset=name, percent=percent) for name, percent in split.mirrors.items()
        ),
    )
    if split.sticky is not None:
        with_cookie = split.sticky.kind is MatchKind.COOKIE
        message.sticky.CopyFrom(
            mesh_pb2.Sticky(cookie=split.sticky.name)
            if with_cookie
            else mesh_pb2.Sticky(header=split.sticky.name)
        )
    return message


def _tester_message(tester: TesterMatch) -> mesh_pb2.Tester:
    message = mesh_pb2.Tester(value=tester.value or None, subset=tester.version)
    if tester.kind is MatchKind.COOKIE:
        message.cookie = tester.name
    else:
        message.header = tester.name
    return message


def _rounded(weights: Mapping[str, float]) -> dict[str, float]:
    """Shares with the decimals that the mesh takes; 100 - 0.3 has an error far behind them."""
    return {name: round(weight, _DECIMALS) for name, weight in weights.items()}


def _split(message: mesh_pb2.TrafficSplit) -> TrafficSplit:
    sticky = None
    if message.HasField("sticky"):
        is_cookie = message.sticky.WhichOneof("source") == "cookie"
        sticky = Sticky(
            kind=MatchKind.COOKIE if is_cookie else MatchKind.HEADER,
            name=message.sticky.cookie if is_cookie else message.sticky.header,
        )
    return TrafficSplit(
        weights={each.subset: each.weight for each in message.weights},
        testers=tuple(map(_tester, message.testers)),
        sticky=sticky,
        mirrors={each.subset: each.percent for each in message.mirrors},
    )


def _tester(message: mesh_pb2.Tester) -> TesterMatch:
    is_cookie = message.WhichOneof("source") == "cookie"
    return TesterMatch(
        kind=MatchKind.COOKIE if is_cookie else MatchKind.HEADER,
        name=message.cookie if is_cookie else message.header,
        value=message.value,
        version=message.subset,
    )


def _applied(message: mesh_pb2.SplitInForce) -> Applied:
    since_s, requested_s = _seconds(message.since), _seconds(message.requested)
    detail = message.message
    if message.proxies:
        count = len(message.proxies)
        detail = (
            f"acknowledged by {count} prox{'y' if count == 1 else 'ies'} in "
            f"{1000 * (since_s - requested_s):.0f} ms"
        )
        if message.late_proxies:
            detail += f"; {message.message}"
    return Applied(
        since_s=since_s, requested_s=requested_s, known=Knowledge.ACKNOWLEDGED, detail=detail
    )


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9
