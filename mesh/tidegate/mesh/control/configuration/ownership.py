"""Ownership: which rollout owns the traffic of a host, and who may change it.

The owner is an annotation of the VirtualService, so it is in effect, merged and journaled as the
weights are. A command that would change owned traffic is refused unless it is forced.
"""

from collections.abc import Iterator

from tidegate.chassis.errors import FailedPrecondition
from tidegate.istio import IstioObjects
from tidegate.istio.annotations import RolloutName
from tidegate.istio.editing.host_routes import names_host
from tidegate.istio.editing.shifts import find_host
from tidegate.istio.virtual_service import VirtualService

__all__ = ["refuse_change", "refuse_other_owner", "services_of"]


def services_of(objects: IstioObjects, host: str) -> list[VirtualService]:
    """The VirtualServices with a route that names a host.

    Args:
        objects: The objects.
        host: The host, by its full name or its first label.

    Raises:
        EditError: There is no such host.
    """
    name = find_host(objects, host)
    return [
        service
        for service in objects.virtual_services.values()
        if any(names_host(route, name) for route in service.http)
    ]


def refuse_change(services: list[VirtualService], what: str) -> None:
    """Refuses a change of VirtualServices that a rollout owns.

    Args:
        services: The VirtualServices that would change.
        what: What would change them: "shift" or "reset".

    Raises:
        FailedPrecondition: A rollout owns the traffic of one.
    """
    for service, owner in _owned(services):
        raise _error(
            service,
            owner,
            f"hold it with `tidegate rollout pause {owner.name}`, end it with `tidegate rollout"
            f" abort {owner.name}`, or {what} all the same with --force, which the rollout takes"
            " for a foreign change",
        )


def refuse_other_owner(services: list[VirtualService], owner: RolloutName | None) -> None:
    """Refuses that a rollout takes VirtualServices which another one owns.

    Args:
        services: The VirtualServices.
        owner: The rollout; None where traffic is given back.

    Raises:
        FailedPrecondition: Another rollout owns the traffic of one.
    """
    for service, other in _owned(services):
        if owner not in (None, other):
            raise _error(
                service,
                other,
                f"wait until it has ended, or end it with `tidegate rollout abort {other.name}`",
            )


def _owned(services: list[VirtualService]) -> Iterator[tuple[VirtualService, RolloutName]]:
    for service in services:
        if (owner := service.annotations.rollout) is not None:
            yield service, owner


def _error(service: VirtualService, owner: RolloutName, fix: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the traffic of {service.name} belongs to the rollout {owner}; {fix}",
        reason="TRAFFIC_OWNED",
        metadata={"rollout": str(owner), "virtual_service": str(service.name)},
    )
