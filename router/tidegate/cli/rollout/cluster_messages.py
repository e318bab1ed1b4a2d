"""Rollout objects of a cluster as the messages that the router's service gives.

So commands show rollouts of a cluster and of a laptop in the same way.
"""

from collections.abc import Mapping
from typing import Any, Final

from tidegate.rollout.crd.mapping import StoredState, refusal_of, rollout_of, stored_of
from tidegate.rollout.crd.packing import DamagedStateError
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.messages import rollout_message, spec_message
from tidegate.rollout.spec.faults import SpecError
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["object_message", "state_of"]

_LAST_EVENTS: Final = 20


def state_of(manifest: Mapping[str, Any]) -> StoredState | None:
    """Returns what the status of an object keeps; None if it keeps nothing that can be read."""
    try:
        return stored_of(manifest)
    except DamagedStateError:
        return None


def object_message(manifest: Mapping[str, Any]) -> rollout_pb2.Rollout:
    """Returns an object as a message.

    The generation in it is that of the object's spec, once that spec runs, and less before. So a
    caller that applied a spec waits for the generation that the API server gave it.

    Args:
        manifest: The object, as JSON has it.
    """
    state, refusal = state_of(manifest), refusal_of(manifest)
    generation = int(manifest["metadata"].get("generation", 0))
    try:
        wanted = rollout_of(manifest)
    except SpecError as error:
        # The API server has accepted what it cannot judge.
        wanted, refusal = None, refusal or str(error)
    if state is None:
        message = _without_state(manifest, wanted, refusal)
        runs = False
    else:
        message = rollout_message(
            state.rollout, state.status, state.events[-_LAST_EVENTS:], state.problem
        )
        observed = (manifest.get("status") or {}).get("observedGeneration") == generation
        runs = observed and wanted is not None and wanted.spec == state.rollout.spec
        if wanted is not None:
            # What was applied; the status is about what runs.
            applied = spec_message(wanted)
            message.metadata.CopyFrom(applied.metadata)
            message.spec.CopyFrom(applied.spec)
    if refusal and state is not None:
        message.status.phase = rollout_pb2.PHASE_REFUSED
        message.status.message = (
            f"the changed spec is refused: {refusal}; the earlier one is {state.status.phase.value}"
        )
    message.status.generation = generation if runs or refusal else max(0, generation - 1)
    return message


def _without_state(
    manifest: Mapping[str, Any], wanted: Rollout | None, refusal: str
) -> rollout_pb2.Rollout:
    if refusal:
        status = RolloutStatus(phase=Phase.REFUSED, reason="SpecRefused", message=refusal)
    else:
        status = RolloutStatus(message="the router has not looked at it yet")
    if wanted is not None:
        return rollout_message(wanted, status)
    metadata = manifest["metadata"]
    return rollout_pb2.Rollout(
        metadata=rollout_pb2.Metadata(name=metadata["name"], namespace=metadata["namespace"]),
        spec=rollout_pb2.RolloutSpec(host=manifest.get("spec", {}).get("host", "")),
        status=rollout_pb2.RolloutStatus(
            phase=rollout_pb2.PHASE_REFUSED, reason=status.reason, message=status.message
        ),
    )
