"""The structural schema of a rollout's status on a cluster.

People and pipelines read most of it. `evidence` and `samples` hold what only the controller reads
back, exactly and packed; see `tidegate.rollout.crd.packing`.
"""

from typing import Any, Final

from tidegate.rollout.crd.command import MOST_WORDS
from tidegate.rollout.crd.conditions import ConditionType
from tidegate.rollout.engine.status import Phase

__all__ = ["MOST_EVENTS", "PHASES", "status_schema"]

MOST_EVENTS: Final = 30
"""The status keeps so many events of the history, the last ones."""

PHASES: Final = {each: each.value.capitalize() for each in Phase}
"""The phases as the object has them, such as ``Progressing``."""


def status_schema() -> dict[str, Any]:
    """Returns the schema of `status`."""
    return _object(
        "Where the rollout is. The controller writes it.",
        observedGeneration=_whole("The generation of the spec that the status is about."),
        phase=_text(
            "Pending: the rollout has not changed any traffic. Progressing: the candidate gets"
            " traffic, and the rollout watches. Paused: the split stays until somebody resumes the"
            " rollout. Promoting, Aborting, Completing: it is decided, and the last split comes"
            " into force. Promoted: the candidate has all traffic. Aborted: the baseline has it."
            " Completed: a comparison has ended. Refused: the rollout cannot run as it is written."
            " Superseded: a changed spec took its place.",
            enum=list(PHASES.values()),
        ),
        step=_text("The current step and how many there are, such as 2/4."),
        weight=_number("The candidate's share of the requests, in percent."),
        verdict=_text(
            "What the evidence says. no data: too little was measured. open: nothing is proven"
            " yet. met: every objective that decides is met. missed: an objective is missed."
        ),
        reason=_text("Why the rollout is where it is, as one word for programs."),
        message=_text("Why the rollout is where it is, with the numbers."),
        problem=_text("Why the rollout cannot be evaluated now; absent if it can."),
        startedAt=_time("When the rollout first changed traffic."),
        endedAt=_time("When the rollout ended."),
        winner=_text("The version that an A/B test found."),
        conditions=_conditions(),
        split=_object(
            "How the host's requests are divided.",
            desired=_text("The split that the rollout wants, in words."),
            observed=_text("The split that was read last, in words."),
            inForce={"type": "boolean", "description": "Whether the desired split is in force."},
            since=_time("Since when the desired split is in force."),
            how=_text("How it is known that the split is in force, and how long it took."),
        ),
        executing=_object(
            "The spec that still runs, while a changed spec waits until the traffic is back at"
            " the baseline. Absent if the spec itself runs.",
            spec={
                "type": "object",
                "description": "The spec that runs.",
                "x-kubernetes-preserve-unknown-fields": True,
            },
        ),
        lastCommand=_object(
            "The answer to the last command, which came in the annotation tidegate.dev/command.",
            id=_text("The command's id."),
            accepted={"type": "boolean", "description": "Whether it is carried out."},
            message=_text("Why not, and what to do instead.", maxLength=MOST_WORDS),
        ),
        evidence={
            **_object(
                "What the evidence says, and what the controller remembers of it.",
                objectives={
                    "type": "array",
                    "description": "What is known about each objective and candidate.",
                    "x-kubernetes-list-type": "atomic",
                    "items": _object(
                        "One objective of one candidate.",
                        candidate=_text("The candidate."),
                        objective=_text("The objective's measure."),
                        verdict=_text("no data, open, met or missed."),
                        detail=_text("The numbers, in words."),
                    ),
                },
                lostRequests=_whole(
                    "About how many requests are not in the evidence because their records were"
                    " lost; absent if none is known."
                ),
                state=_text(
                    "The controller's exact state: MessagePack, compressed, in Base64. Do not edit."
                ),
            ),
            "x-kubernetes-map-type": "atomic",
        },
        samples=_text("What the evidence said over time, for reports; packed like evidence.state."),
        history={
            "type": "array",
            "description": f"The last {MOST_EVENTS} events, in order.",
            "x-kubernetes-list-type": "atomic",
            "items": _object(
                "One event.",
                number=_whole("Its place in the history, from 1."),
                time=_text("When it happened.", format="date-time"),
                kind=_text("What happened, as one word."),
                message=_text("What happened and why, with the numbers."),
                numbers={
                    "type": "object",
                    "description": "The numbers that made the decision.",
                    "additionalProperties": {"type": "number"},
                },
            ),
        },
        writer=_text("Which process of the controller wrote the status."),
    )


def _conditions() -> dict[str, Any]:
    known = ", ".join(each.value for each in ConditionType)
    return {
        "type": "array",
        "description": f"Conditions for `kubectl wait`: {known}.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            **_object(
                "One condition.",
                type=_text("Its type.", maxLength=316),
                status=_text("True, False or Unknown.", enum=["True", "False", "Unknown"]),
                reason=_text("Why, as one word.", minLength=1, maxLength=1024),
                message=_text("Why, in words.", maxLength=32768),
                observedGeneration=_whole("The generation of the spec that it is about."),
                lastTransitionTime=_time("When its status changed last."),
            ),
            "required": ["type", "status", "reason", "lastTransitionTime"],
        },
    }


def _object(description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "description": description, "properties": properties}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _time(description: str) -> dict[str, Any]:
    return _text(description, format="date-time")


def _number(description: str) -> dict[str, Any]:
    return {"type": "number", "description": description}


def _whole(description: str) -> dict[str, Any]:
    return {"type": "integer", "format": "int64", "description": description}
