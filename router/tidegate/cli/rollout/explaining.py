"""What a rollout waits for, in words: the present state, the evidence, and what would change it."""

import math
from collections.abc import Iterator
from typing import Final

from tidegate.cli.rollout.words import (
    PHASES,
    age,
    candidates_of,
    effect_interval,
    evidence_text,
    limit_text,
    seconds_of,
    split_text,
    value_text,
)
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["explanation"]

_OTHERWISE: Final = {
    rollout_pb2.OTHERWISE_UNSPECIFIED: "it pauses",
    rollout_pb2.OTHERWISE_PAUSE: "it pauses",
    rollout_pb2.OTHERWISE_ABORT: "it is aborted",
    rollout_pb2.OTHERWISE_PROMOTE: "it is promoted",
}
_WAITS: Final = {
    "WaitingForApproval": "It goes on when somebody runs `tidegate rollout promote {name}`.",
    "WaitingForEvidence": "It goes on by itself once every objective that decides is met.",
    "WaitingForData": (
        "It goes on once the candidate gets requests and the source counts them."
        " {requests_are_shown}"
    ),
    "WaitingForTime": "It goes on by itself when the time is over.",
    "WaitingForMesh": "It begins by itself once the traffic can be read.",
    "WaitingForEndpoints": (
        "It begins by itself once each version has a healthy endpoint. {endpoints_are_shown}"
    ),
    "Testing": "It ends by itself.",
    "PausedByUser": "`tidegate rollout resume {name}` lets it go on.",
    "TimeUp": (
        "`tidegate rollout resume {name}` gives it the same time again; `tidegate rollout promote"
        " --full {name}` or `tidegate rollout abort {name}` decides."
    ),
    "ForeignChange": (
        "`tidegate rollout resume {name}` puts its split in force again; `tidegate rollout abort"
        " {name}` gives the baseline all traffic."
    ),
    "HarmBudgetSpent": (
        "`tidegate rollout resume {name}` gives it a new budget; `tidegate rollout abort {name}`"
        " ends it."
    ),
    "ObjectiveMissed": (
        "`tidegate rollout resume {name}` accepts that and goes on; `tidegate rollout abort {name}`"
        " ends it."
    ),
    "SampleRatioMismatch": (
        "`tidegate rollout resume {name}` accepts the shares and goes on; `tidegate rollout abort"
        " {name}` ends it."
    ),
    "SubsetUnknown": "Correct it and run `tidegate rollout retry {name}`.",
    "HostTaken": "Run `tidegate rollout retry {name}` when the other one has ended.",
    "OtherVersions": "Shift those away and run `tidegate rollout retry {name}`.",
    "BaselineUnused": "Correct it and run `tidegate rollout retry {name}`.",
    "TrafficUnclear": "Correct it and run `tidegate rollout retry {name}`.",
}
_SHOWN_ON_A_LAPTOP: Final = {
    "requests_are_shown": "`tidegate mesh status` shows whether they arrive.",
    "endpoints_are_shown": "`tidegate mesh status` shows the endpoints.",
}
_SHOWN_ON_A_CLUSTER: Final = {
    "requests_are_shown": (
        "If it gets some, look at whether the proxies log to the router: a Telemetry object and a"
        " provider in Istio's mesh configuration."
    ),
    "endpoints_are_shown": "`kubectl get pods,endpointslices` shows the endpoints.",
}
_DECIDES: Final = (
    rollout_pb2.IMPORTANCE_UNSPECIFIED,
    rollout_pb2.IMPORTANCE_ABORT,
    rollout_pb2.IMPORTANCE_PAUSE,
)
_FOLLOWS: Final = {
    rollout_pb2.IMPORTANCE_UNSPECIFIED: "aborts the rollout",
    rollout_pb2.IMPORTANCE_ABORT: "aborts the rollout",
    rollout_pb2.IMPORTANCE_PAUSE: "pauses the rollout",
    rollout_pb2.IMPORTANCE_REPORT: "is only reported",
}


def explanation(
    rollout: rollout_pb2.Rollout, now_s: float, *, with_reason: bool = True, cluster: str = ""
) -> list[str]:
    """Returns the lines.

    Args:
        rollout: The rollout with its status.
        now_s: The time, in seconds since the epoch.
        with_reason: Whether to tell why the rollout is as it is.
        cluster: The options that name the rollout's cluster in a command; empty for a laptop.
    """
    return [
        *_state(rollout, now_s, with_reason=with_reason),
        *_evidence(rollout),
        *_outlook(rollout, now_s, cluster),
    ]


def _state(rollout: rollout_pb2.Rollout, now_s: float, *, with_reason: bool) -> Iterator[str]:
    status, name = rollout.status, rollout.metadata.name
    words = PHASES[status.phase][0]
    reason = f": {status.message}" if status.message and with_reason else ""
    yield f"{name} is {words}{reason}."
    if status.problem:
        yield f"Problem: {status.problem}."
    host = rollout.spec.host
    if status.reason == "ForeignChange" and status.HasField("observed"):
        found = split_text(status.observed)
        yield f"The traffic of {host} is {found}, as somebody else has set it."
        yield f"The rollout wants {split_text(status.desired)}."
    elif status.HasField("desired"):
        since = ""
        if status.in_force and status.HasField("in_force_since"):
            since = f", in force for {age(now_s - seconds_of(status.in_force_since))}"
        elif not status.in_force:
            since = ", not in force yet"
        yield f"The traffic of {host}: {split_text(status.desired)}{since}."


def _evidence(rollout: rollout_pb2.Rollout) -> Iterator[str]:
    status = rollout.status
    if status.lost_requests:
        yield (
            f"About {status.lost_requests:,} requests are not in the evidence, because their"
            " records were lost."
        )
    for assessment in status.assessments:
        if assessment.sample_ratio.mismatch:
            yield (
                f"{assessment.candidate} does not get the share of requests that it should, so the"
                " comparison cannot be trusted."
            )
        for found, objective in zip(assessment.objectives, rollout.spec.objectives, strict=False):
            yield f"{assessment.candidate}, {found.metric}: {_objective(found, objective, rollout)}"


def _objective(
    found: rollout_pb2.ObjectiveAssessment,
    objective: rollout_pb2.Objective,
    rollout: rollout_pb2.Rollout,
) -> str:
    limit = limit_text(objective, found.effect_limit)
    numbers = ""
    if effect := effect_interval(objective, found):
        numbers = f"; the effect is {effect}, and {limit} is tolerated"
    values = ""
    if found.HasField("candidate_value"):
        base = found.baseline_value if found.HasField("baseline_value") else None
        values = f"{value_text(objective, found.candidate_value)}"
        values += f" against {value_text(objective, base)}{numbers}. "
    match found.verdict:
        case rollout_pb2.VERDICT_NO_DATA:
            return f"no data ({found.candidate_trials} trials)."
        case rollout_pb2.VERDICT_MET:
            return f"{values}It is met."
        case rollout_pb2.VERDICT_MISSED:
            return f"{values}It is missed, which {_FOLLOWS[found.importance]}."
        case _:
            safe = evidence_text(found.safe_e, found.safe_threshold)
            harm = evidence_text(found.harm_e, found.harm_threshold)
            more = _requests_left(found, rollout)
            return f"{values}Evidence that it is met: {safe}{more}; that it is missed: {harm}."


def _requests_left(found: rollout_pb2.ObjectiveAssessment, rollout: rollout_pb2.Rollout) -> str:
    """Says when the objective will be met if the evidence grows as it has so far."""
    e, threshold, trials = found.safe_e, found.safe_threshold, found.candidate_trials
    if not (1 < e < threshold) or not math.isfinite(threshold) or not trials:
        return ""
    more = trials * (math.log(threshold) / math.log(e) - 1)
    words = f", about {more:,.0f} more requests at this pace"
    status = rollout.status
    candidates = candidates_of(rollout.spec)
    shares = [
        max(status.desired.weights.get(c, 0), status.desired.mirrors.get(c, 0)) for c in candidates
    ]
    rate = status.requests_per_second * min(shares, default=0.0) / 100
    return f"{words} ({age(more / rate)})" if rate > 0 else words


def _outlook(rollout: rollout_pb2.Rollout, now_s: float, cluster: str) -> Iterator[str]:
    status, name = rollout.status, rollout.metadata.name
    shown = _SHOWN_ON_A_LAPTOP
    if cluster:
        shown = _SHOWN_ON_A_CLUSTER
        name = f"{rollout.metadata.namespace}/{name} {cluster}"
    if (waits := _WAITS.get(status.reason)) is not None:
        yield waits.format(name=name, **shown)
    if status.HasField("harm_budget"):
        yield (
            f"It has cost {status.harm_spent:.1f} extra bad requests of a budget of"
            f" {status.harm_budget:g}."
        )
    if status.HasField("decide_by"):
        left_s = seconds_of(status.decide_by) - now_s
        then = _OTHERWISE[rollout.spec.decide.otherwise]
        yield f"If nothing is decided within {age(left_s)}, {then} (decide.otherwise)."
