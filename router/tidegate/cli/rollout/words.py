"""How rollouts are told: phases, times, weights, numbers and small scales, the same everywhere."""

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.evidence.words import amount, number, percent
from tidegate.rollout.spec.objectives import DEFAULT_MARGIN, DEFAULT_RATIO
from tidegate.rollout.spec.quantities import duration_text
from tidegate.rollout.v1 import rollout_pb2

__all__ = [
    "ENDED",
    "FAILED",
    "PHASES",
    "VERDICTS",
    "age",
    "clock",
    "effect_text",
    "evidence_share",
    "evidence_text",
    "limit_text",
    "moment",
    "seconds_of",
    "split_text",
    "value_text",
    "weights_text",
    "winner_text",
]

_Phase = rollout_pb2.Phase
PHASES: Final[Mapping[int, tuple[str, str]]] = {
    rollout_pb2.PHASE_UNSPECIFIED: ("unknown", "dim"),
    rollout_pb2.PHASE_PENDING: ("pending", "yellow"),
    rollout_pb2.PHASE_PROGRESSING: ("progressing", "cyan"),
    rollout_pb2.PHASE_PAUSED: ("paused", "yellow"),
    rollout_pb2.PHASE_PROMOTING: ("promoting", "green"),
    rollout_pb2.PHASE_ABORTING: ("aborting", "red"),
    rollout_pb2.PHASE_COMPLETING: ("completing", "green"),
    rollout_pb2.PHASE_PROMOTED: ("promoted", "bold green"),
    rollout_pb2.PHASE_ABORTED: ("aborted", "bold red"),
    rollout_pb2.PHASE_COMPLETED: ("completed", "bold green"),
    rollout_pb2.PHASE_REFUSED: ("refused", "bold red"),
    rollout_pb2.PHASE_SUPERSEDED: ("superseded", "dim"),
}
"""The words and the styles of the phases."""

ENDED: Final = frozenset(
    {
        rollout_pb2.PHASE_PROMOTED,
        rollout_pb2.PHASE_ABORTED,
        rollout_pb2.PHASE_COMPLETED,
        rollout_pb2.PHASE_REFUSED,
        rollout_pb2.PHASE_SUPERSEDED,
    }
)
FAILED: Final = frozenset(
    {rollout_pb2.PHASE_ABORTED, rollout_pb2.PHASE_REFUSED, rollout_pb2.PHASE_SUPERSEDED}
)
VERDICTS: Final[Mapping[int, tuple[str, str]]] = {
    rollout_pb2.VERDICT_UNSPECIFIED: ("", ""),
    rollout_pb2.VERDICT_NO_DATA: ("no data", "yellow"),
    rollout_pb2.VERDICT_OPEN: ("open", "cyan"),
    rollout_pb2.VERDICT_MET: ("met", "green"),
    rollout_pb2.VERDICT_MISSED: ("missed", "bold red"),
}
_DURATIONS: Final = frozenset(
    {
        rollout_pb2.SIGNAL_LATENCY,
        rollout_pb2.SIGNAL_TIME_TO_FIRST_TOKEN,
        rollout_pb2.SIGNAL_INTER_TOKEN_LATENCY,
    }
)
_MIXES: Final = frozenset(
    {rollout_pb2.SIGNAL_PREDICTION_DRIFT, rollout_pb2.SIGNAL_FINISH_REASON_DRIFT}
)
_LEAST_EVIDENCE: Final = 0.001


def seconds_of(stamp: Timestamp) -> float:
    """Returns a timestamp in seconds since the epoch."""
    return stamp.seconds + stamp.nanos / 1e9


def age(seconds: float) -> str:
    """Returns a length of time in at most two units: ``3h12m``, ``45s``."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return duration_text(left) if left < 600 else f"{left // 60}m"
    hours, rest = divmod(left, 3600)
    if hours < 48:
        return f"{hours}h{rest // 60}m" if rest >= 60 else f"{hours}h"
    return f"{hours // 24}d"


def clock(stamp: Timestamp) -> str:
    """Returns the local time of day."""
    return dt.datetime.fromtimestamp(seconds_of(stamp)).astimezone().strftime("%H:%M:%S")


def moment(stamp: Timestamp) -> str:
    """Returns the local date and time with its offset."""
    local = dt.datetime.fromtimestamp(seconds_of(stamp)).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S %z")


def weights_text(weights: Mapping[str, float], first: Iterable[str] = ()) -> str:
    """Returns weights as ``v1 90%, v2 10%``, those named first at the front."""
    order = [*first, *sorted(set(weights) - set(first))]
    return ", ".join(f"{name} {weights[name]:g}%" for name in order if name in weights)


def split_text(split: rollout_pb2.Split) -> str:
    """Returns everything of a split in one line."""
    words = [weights_text(split.weights)]
    words += [f"copies to {name} {share:g}%" for name, share in sorted(split.mirrors.items())]
    words += split.testers
    words += [f"sticky by {split.sticky}"] if split.sticky else []
    return ", ".join(word for word in words if word)


def value_text(objective: rollout_pb2.Objective, value: float | None) -> str:
    """Returns a measured rate, quantile or gauge of an objective."""
    if value is None:
        return "–"
    if objective.signal == rollout_pb2.SIGNAL_PROMQL:
        return number(value)
    if not objective.HasField("quantile"):
        return percent(value)
    return amount(value, is_duration=objective.signal in _DURATIONS)


def effect_text(objective: rollout_pb2.Objective, value: float) -> str:
    """Returns an effect or its limit: a ratio, a share of answers, or a gauge."""
    if objective.signal == rollout_pb2.SIGNAL_PROMQL:
        return number(value)
    if objective.signal in _MIXES:
        return percent(value)
    return f"{number(value)}x"


def limit_text(objective: rollout_pb2.Objective, limit: float) -> str:
    """Returns what an objective tolerates, as its file has it: ``1.2x + 2%``, ``+10%``.

    Args:
        objective: The objective.
        limit: The effect that it tolerates, which has no margin of rates.
    """
    is_gauge = objective.signal == rollout_pb2.SIGNAL_PROMQL
    if is_gauge or objective.signal in _MIXES or objective.HasField("quantile"):
        return effect_text(objective, limit)
    if objective.tolerate.HasField("difference"):
        return f"+{percent(objective.tolerate.difference)}"
    given = objective.tolerate
    ratio = f"{number(given.ratio if given.HasField('ratio') else DEFAULT_RATIO)}x"
    margin = objective.margin if objective.HasField("margin") else DEFAULT_MARGIN
    return f"{ratio} + {percent(margin)}" if margin else ratio


def evidence_text(e: float, threshold: float) -> str:
    """Returns an e-value beside its threshold: ``12 of 133``, ``< 0.001 of 20``."""
    if threshold <= 0 or not math.isfinite(threshold):
        return "–"
    most = threshold * 1000
    shown = number(e)
    if e > most:
        shown = f"> {number(most)}"
    elif 0 < e < _LEAST_EVIDENCE:
        shown = f"< {_LEAST_EVIDENCE}"
    return f"{shown} of {number(threshold)}"


def evidence_share(e: float, threshold: float) -> float:
    """Returns how far an e-value is on the way to its threshold, on a log scale from 0 to 1."""
    if not threshold > 1 or not e > 1:
        return 0.0
    return min(1.0, math.log(e) / math.log(threshold)) if math.isfinite(e) else 1.0


def winner_text(rollout: rollout_pb2.Rollout) -> str:
    """Returns what it means that a rollout has found a version: only a comparison has a winner."""
    winner = rollout.status.winner
    is_alone = rollout.spec.strategy.WhichOneof("kind") == "shadow"
    return f"{winner} met every objective" if is_alone else f"the winner is {winner}"
