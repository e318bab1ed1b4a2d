"""Ownership: which rollout owns the traffic of a VirtualService, and who may change it.

The owner is an annotation of the VirtualService, so it is in effect, merged and journaled as the
weights are. A command that would change owned traffic is refused unless it is forced.
"""

from collections.abc import Iterator

from tidegate.chassis.errors import FailedPrecondition
from tidegate.istio import IstioObjects
from tidegate.istio.annotations import RolloutName
from tidegate.istio.virtual_service import VirtualService

__all__ = ["refuse_if_owned", "refuse_other_owner"]


def refuse_if_owned(before: IstioObjects, after: IstioObjects, what: str) -> None:
    """Refuses a change of objects if it changes a VirtualService that a rollout owns.

    Args:
        before: The objects in effect.
        after: The objects with the change.
        what: What changes them: "shift" or "reset".

    Raises:
        FailedPrecondition: A rollout owns the traffic of one.
    """
    for service, owner in _owned(before, after):
        raise _error(
            service,
            owner,
            f"hold it with `tidegate rollout pause {owner.name}`, end it with `tidegate rollout"
            f" abort {owner.name}`, or {what} all the same with --force, which the rollout takes"
            " for a foreign change",
        )


def refuse_other_owner(
    before: IstioObjects, after: IstioObjects, owner: RolloutName | None
) -> None:
    """Refuses that a rollout takes VirtualServices which another one owns.

    Args:
        before: The objects in effect.
        after: The objects with the change.
        owner: The rollout; None where traffic is given back.

    Raises:
        FailedPrecondition: Another rollout owns the traffic of one.
    """
    for service, other in _owned(before, after):
        if owner not in (None, other):
            raise _error(
                service,
                other,
                f"wait until it has ended, or end it with `tidegate rollout abort {other.name}`; if"
                " it does not exist any more, `tidegate mesh reset --force` frees its traffic",
            )


def _owned(
    before: IstioObjects, after: IstioObjects
) -> Iterator[tuple[VirtualService, RolloutName]]:
    """Yields the owned VirtualServices that a change concerns."""
    for name in sorted(after.changed_from(before), key=str):
        service = before.virtual_services.get(name)
        if service is not None and service.annotations.rollout is not None:
            yield service, service.annotations.rollout


def _error(service: VirtualService, owner: RolloutName, fix: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the traffic of {service.name} belongs to the rollout {owner}; {fix}",
        reason="TRAFFIC_OWNED",
        metadata={"rollout": str(owner), "virtual_service": str(service.name)},
    )
