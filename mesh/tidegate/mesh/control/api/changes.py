"""A change in MeshService: its preview, events and status, and the error if it was not made."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from google.protobuf import text_format
from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.chassis.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ServiceError,
    Unavailable,
)
from tidegate.errors import TidegateError
from tidegate.istio import EditError
from tidegate.mesh.control.errors import (
    InterruptedTransitionError,
    RolledBackError,
    StateError,
    UnexpectedChangeError,
)
from tidegate.mesh.control.served_configuration import ProposedChange
from tidegate.mesh.control.transitions.events import (
    TransitionEvent,
    TransitionState,
    TransitionStatus,
)
from tidegate.mesh.control.transitions.plan import StageKind, keys_of
from tidegate.mesh.resources import ProxyKind, Resource, ResourceKey, Resources, ResourceType
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["event_message", "preview", "service_error", "timestamp", "transition_message"]

_STAGES: Final[Mapping[StageKind | None, mesh_pb2.Stage.ValueType]] = {
    None: mesh_pb2.STAGE_UNSPECIFIED,
    StageKind.CLUSTERS: mesh_pb2.STAGE_CLUSTERS,
    StageKind.ROUTES: mesh_pb2.STAGE_ROUTES,
    StageKind.DRAIN: mesh_pb2.STAGE_DRAIN,
    StageKind.REMOVE: mesh_pb2.STAGE_REMOVE,
}
_TRANSITION_STATES: Final = {
    TransitionState.RUNNING: mesh_pb2.TRANSITION_STATE_RUNNING,
    TransitionState.ROLLING_BACK: mesh_pb2.TRANSITION_STATE_ROLLING_BACK,
    TransitionState.DONE: mesh_pb2.TRANSITION_STATE_DONE,
    TransitionState.ROLLED_BACK: mesh_pb2.TRANSITION_STATE_ROLLED_BACK,
}


def preview(change: ProposedChange, before: Mapping[ProxyKind, Resources]) -> mesh_pb2.Preview:
    """Shows a change.

    Args:
        change: The change.
        before: What is served without it.
    """
    objects = (_diff(str(each.path), each.before or "", each.after or "") for each in change.files)
    resources = (
        _diff(
            f"{proxy_kind.value}: {key}",
            _text(before[proxy_kind].get(key)),
            _text(change.compiled.resources[proxy_kind].get(key)),
        )
        for proxy_kind, difference in change.changes.items()
        for key in _without_scopes(tuple(keys_of(difference)))
    )
    return mesh_pb2.Preview(objects_diff="".join(objects), resources_diff="".join(resources))


def event_message(event: TransitionEvent) -> mesh_pb2.TransitionEvent:
    """An event of a change, on the wire."""
    return mesh_pb2.TransitionEvent(
        transition=event.transition,
        stage=_STAGES[event.stage],
        kind=mesh_pb2.TransitionEvent.Kind.Value(f"KIND_{event.kind.name}"),
        time=timestamp(event.at),
        proxy=event.proxy,
        subject=event.subject,
        message=event.message,
    )


def transition_message(status: TransitionStatus) -> mesh_pb2.Transition:
    """The status of a transition, on the wire."""
    return mesh_pb2.Transition(
        id=status.id,
        description=status.description,
        state=_TRANSITION_STATES[status.state],
        stage=_STAGES[status.stage],
        started_at=timestamp(status.started_at),
        ended_at=None if status.ended_at is None else timestamp(status.ended_at),
        reason=status.reason,
    )


def timestamp(seconds: float) -> Timestamp:
    """A time in seconds since 1970, on the wire."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def service_error(error: TidegateError) -> ServiceError:
    """The gRPC error for what kept a change from being made."""
    match error:
        case ServiceError():
            return error
        case EditError():
            return InvalidArgument.of(error.field, str(error), reason="CANNOT_EDIT")
        case RolledBackError():
            return FailedPrecondition(
                str(error), reason="TRANSITION_ROLLED_BACK", metadata={"stage": error.stage}
            )
        case InterruptedTransitionError():
            return Unavailable(str(error), reason="CONTROLLER_LEAVING")
        case StateError():
            return FailedPrecondition(str(error), reason="STATE_FILE")
        case UnexpectedChangeError():
            return Internal(str(error))
        case _:
            return FailedPrecondition(str(error), reason="OBJECTS_REFUSED")


def _without_scopes(keys: Sequence[ResourceKey]) -> Iterable[ResourceKey]:
    """Leaves out scopes whose virtual host is among the names: they hold the same routes."""
    hosts = {key.name for key in keys if key.type is ResourceType.VIRTUAL_HOST}
    return (
        key for key in keys if key.type is not ResourceType.SCOPED_ROUTE or key.name not in hosts
    )


def _diff(name: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        name if before else "(not there)",
        name if after else "(gone)",
    )
    return "".join(_ended(lines))


def _ended(lines: Iterable[str]) -> Iterable[str]:
    return (line if line.endswith("\n") else f"{line}\n" for line in lines)


def _text(resource: Resource | None) -> str:
    if resource is None:
        return ""
    # Printing the Any also prints the configurations packed inside it.
    return text_format.MessageToString(resource.body)
