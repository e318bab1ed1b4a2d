"""The condition ``Accepted`` of a Rollout: whether its spec can be carried out.

The API server refuses most faults itself, by the schema. What only the router sees, such as an
objective that the source of evidence cannot count, it says here. The condition has a field manager
of its own: the status of the rollout that runs, under an earlier spec perhaps, stays as it is. If
nothing has ever run, the phase, ``Stalled`` and ``Ended`` say it too, for columns, for tools that
judge health, and for those who wait.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tidegate.kube.client import KubeClient
from tidegate.kube.resources import ROLLOUTS, Manifest
from tidegate.rollout.crd.conditions import ConditionType
from tidegate.rollout.crd.status_schema import PHASES
from tidegate.rollout.engine.status import Phase

__all__ = ["ACCEPTED", "accepted_condition", "write_accepted"]

ACCEPTED: Final = "Accepted"
_MANAGER: Final = "tidegate-spec"
_LONGEST: Final = 32_768


def accepted_condition(manifest: Manifest, problem: str, now: datetime) -> Mapping[str, Any] | None:
    """Returns the condition to write; None if the object has it already.

    Args:
        manifest: The object.
        problem: Why its spec cannot be carried out; empty if it can.
        now: The time.
    """
    wanted = {
        "type": ACCEPTED,
        "status": "False" if problem else "True",
        "reason": "SpecRefused" if problem else "SpecAccepted",
        "message": problem[:_LONGEST],
        "observedGeneration": manifest.metadata.generation,
    }
    conditions: Sequence[Mapping[str, Any]] = manifest.status.get("conditions", ())
    found = next((each for each in conditions if each.get("type") == ACCEPTED), {})
    if wanted.items() <= found.items():
        return None
    changed = found.get("status") != wanted["status"]
    since = None if changed else found.get("lastTransitionTime")
    return wanted | {"lastTransitionTime": since or f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"}


async def write_accepted(client: KubeClient, manifest: Manifest, problem: str) -> None:
    """Writes the condition ``Accepted``, unless the object has it already.

    Args:
        client: The API server.
        manifest: The object.
        problem: Why its spec cannot be carried out; empty if it can.

    Raises:
        KubeError: It could not be written.
    """
    condition = accepted_condition(manifest, problem, datetime.now(UTC))
    if condition is None:
        return
    status: dict[str, Any] = {"conditions": [condition]}
    if problem and "evidence" not in manifest.status:
        also = (ConditionType.STALLED, ConditionType.ENDED)
        status["conditions"] += [{**condition, "type": e.value, "status": "True"} for e in also]
        status |= {"phase": PHASES[Phase.REFUSED], "message": condition["message"]}
    metadata = manifest.metadata
    body = {
        # With its uid, an object that is gone is not made anew.
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "status": status,
    }
    await client.apply(ROLLOUTS, body, manager=_MANAGER, force=True, subresource="status")
