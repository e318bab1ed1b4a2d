"""A change in MeshService: its preview, its events, and the error if it was not made."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from google.protobuf import text_format

from tidegate.chassis.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ServiceError,
    Unavailable,
)
from tidegate.errors import TidegateError
from tidegate.istio import EditError
from tidegate.mesh.control.api.status import STAGES, timestamp
from tidegate.mesh.control.errors import (
    InterruptedTransitionError,
    RolledBackError,
    StateError,
    UnexpectedChangeError,
)
from tidegate.mesh.control.served_configuration import ProposedChange
from tidegate.mesh.control.transitions.events import TransitionEvent
from tidegate.mesh.control.transitions.plan import keys_of
from tidegate.mesh.resources import ProxyKind, Resource, ResourceKey, Resources, ResourceType
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["event_message", "preview", "service_error"]


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
        stage=STAGES[event.stage],
        kind=mesh_pb2.TransitionEvent.Kind.Value(f"KIND_{event.kind.name}"),
        time=timestamp(event.at),
        proxy=event.proxy,
        subject=event.subject,
        message=event.message,
    )


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
