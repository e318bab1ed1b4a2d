"""The split of a host in MeshService: what is in effect, and since when a new one is in force."""

import time
from collections.abc import Sequence
from typing import Final

from tidegate.istio import EditError
from tidegate.istio.annotations import RolloutName, Sticky
from tidegate.istio.editing.split_reading import SplitInEffect
from tidegate.istio.editing.splits import HostSplit
from tidegate.istio.editing.tester_routes import SplitTester
from tidegate.mesh.control.api.changes import timestamp
from tidegate.mesh.control.transitions.events import EventKind, TransitionEvent
from tidegate.mesh.control.transitions.plan import StageKind
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["InForce", "description_of_split", "field_of_split", "traffic_message"]

_IN_FORCE_ALREADY: Final = "it was in force already"


def traffic_message(found: SplitInEffect, ready: Sequence[str]) -> mesh_pb2.GetTrafficResponse:
    """The split of a host, on the wire.

    Args:
        found: The split and its owner.
        ready: The subsets that have an endpoint which takes requests.
    """
    return mesh_pb2.GetTrafficResponse(
        host=found.host,
        split=_split_message(found.split),
        subsets=found.subsets,
        ready_subsets=ready,
        owner="" if found.owner is None else str(found.owner),
        problem=found.problem,
    )


def description_of_split(host: str, split: HostSplit, owner: RolloutName | None) -> str:
    """A split in words."""
    words = [f"{name}={weight:g}" for name, weight in split.weights.items()]
    words += [f"mirror {name}={percent:g}%" for name, percent in split.mirrors.items()]
    words += [f"{tester} to {tester.subset}" for tester in split.testers]
    if split.sticky is not None:
        words.append(f"sticky by {split.sticky}")
    what = "traffic is given back" if owner is None else f"rollout {owner}"
    return f"{what}: {host}: {', '.join(words)}"


def field_of_split(error: EditError) -> str:
    """The field of SetTrafficRequest that an edit could not use.

    Routes say which of their parts is wrong by the fields of a shift, which a split has as well.
    """
    field = error.field
    return field if field == "host" or field.startswith("split") else f"split.{field}"


class InForce:
    """Finds in the events of a change since when its split is in force.

    The routes stage sends the split. Its first event is made before the first proxy is sent
    anything: both happen in one turn of the event loop. Its last event is made when every worker of
    every proxy uses the routes, but for the proxies that are late.
    """

    def __init__(self) -> None:
        self._requested_s: float | None = None
        self._since_s: float | None = None
        self._proxies: dict[str, None] = {}
        self._late: dict[str, None] = {}
        self._message = ""

    def take(self, event: TransitionEvent) -> None:
        """Takes the next event."""
        if event.kind is EventKind.COMPLETED:
            self._message = event.message
        if event.stage is not StageKind.ROUTES:
            return
        match event.kind:
            case EventKind.STAGE_STARTED:
                self._requested_s = event.at
            case EventKind.PROXY_ACKNOWLEDGED:
                self._proxies[event.proxy] = None
            case EventKind.PROXY_LATE:
                self._late[event.proxy] = None
            case EventKind.STAGE_DONE:
                self._since_s = event.at

    def message(self) -> mesh_pb2.SplitInForce:
        """What was found, on the wire. Call it after the last event of a change that was made."""
        if self._requested_s is None or self._since_s is None:
            now = timestamp(time.time())
            return mesh_pb2.SplitInForce(since=now, requested=now, message=_IN_FORCE_ALREADY)
        return mesh_pb2.SplitInForce(
            since=timestamp(self._since_s),
            requested=timestamp(self._requested_s),
            proxies=[each for each in self._proxies if each not in self._late],
            late_proxies=self._late,
            changed=True,
            message=self._message,
        )


def _split_message(split: HostSplit) -> mesh_pb2.TrafficSplit:
    return mesh_pb2.TrafficSplit(
        weights=(
            mesh_pb2.SubsetWeight(subset=name, weight=weight)
            for name, weight in split.weights.items()
        ),
        testers=map(_tester_message, split.testers),
        sticky=None if split.sticky is None else _sticky_message(split.sticky),
        mirrors=(
            mesh_pb2.Mirror(subset=name, percent=percent) for name, percent in split.mirrors.items()
        ),
    )


def _tester_message(tester: SplitTester) -> mesh_pb2.Tester:
    message = mesh_pb2.Tester(value=tester.value or None, subset=tester.subset)
    if tester.header is not None:
        message.header = tester.header
    else:
        message.cookie = tester.cookie or ""
    return message


def _sticky_message(sticky: Sticky) -> mesh_pb2.Sticky:
    if sticky.header is not None:
        return mesh_pb2.Sticky(header=sticky.header)
    return mesh_pb2.Sticky(cookie=sticky.cookie or "")
