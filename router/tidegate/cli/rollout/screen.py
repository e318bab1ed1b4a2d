"""One rollout on one screen: traffic, objectives with their evidence, harm, time and events."""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tidegate.cli.rollout.client import key_of
from tidegate.cli.rollout.words import (
    ENDED,
    PHASES,
    VERDICTS,
    age,
    candidates_of,
    clock,
    effect_text,
    evidence_share,
    evidence_text,
    limit_text,
    seconds_of,
    value_text,
    winner_text,
)
from tidegate.rollout.texts import escaped_message
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["event_line", "screen"]

_RUNNING: Final = frozenset(
    {
        rollout_pb2.PHASE_PENDING,
        rollout_pb2.PHASE_PROGRESSING,
        rollout_pb2.PHASE_PAUSED,
    }
)

_BAR: Final = 24
_EVENTS: Final = 8
_LEAST_EVENTS: Final = 3
_KINDS: Final = {
    "Promoted": "bold green",
    "Completed": "bold green",
    "Promoting": "green",
    "Aborting": "red",
    "Aborted": "bold red",
    "Refused": "bold red",
    "SplitFailed": "red",
    "ForeignChange": "yellow",
    "Paused": "yellow",
}


def screen(rollout: rollout_pb2.Rollout, now_s: float, height: int | None = None) -> RenderableType:
    """Returns everything about a rollout.

    Args:
        rollout: The rollout with its status.
        now_s: The time, in seconds since the epoch.
        height: The lines there are; None for as many as it takes. The newest events are always
            among them, each cut to one line.
    """
    return _Screen(escaped_message(rollout), now_s, height)


class _Screen:
    """The screen, which leaves out the scales where the terminal is narrow."""

    def __init__(self, rollout: rollout_pb2.Rollout, now_s: float, height: int | None) -> None:
        self._rollout = rollout
        self._now_s = now_s
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rollout, now_s = self._rollout, self._now_s
        sizes = _Sizes.of(options.max_width)
        parts = [_header(rollout, now_s), _traffic(rollout)]
        parts += [_objectives(rollout, each, sizes) for each in rollout.status.assessments]
        if limits := list(_limits(rollout, now_s)):
            parts.append(Group(*limits))
        events = list(map(event_line, rollout.status.last_events[-_EVENTS:]))
        spaced = [each for part in parts for each in (part, Text())]
        upper = Group(*(spaced if events else spaced[:-1]))
        if self._height is None:
            yield upper
            yield from events
            return
        lines = console.render_lines(upper, options, pad=False)
        # What does not fit is left out above the newest events, which nothing else tells.
        kept = lines[: max(0, self._height - min(len(events), _LEAST_EVENTS))]
        for line in kept:
            yield from line
            yield Segment.line()
        for event in events[max(0, len(events) - (self._height - len(kept))) :]:
            event.no_wrap, event.overflow = True, "ellipsis"
            yield event


class _Sizes(NamedTuple):
    """What the table of objectives has room for.

    Attributes:
        scale: The width of an effect's scale; 0 for none.
        gauge: The width of an e-value's bar.
        has_numbers: Whether e-values are also told as numbers.
    """

    scale: int
    gauge: int
    has_numbers: bool

    @classmethod
    def of(cls, width: int) -> "_Sizes":
        """The sizes for a width."""
        if width >= 150:
            return cls(25, 8, has_numbers=True)
        if width >= 125:
            return cls(15, 4, has_numbers=True)
        return cls(0, 6, has_numbers=width >= 112)


def event_line(event: rollout_pb2.Event, key: str = "") -> Text:
    """Returns an event as one line."""
    style = _KINDS.get(event.kind, "")
    name = (f"{key}  ", "bold") if key else ""
    return Text.assemble(
        (f"{clock(event.time)}  ", "dim"), name, (f"{event.kind}  ", style), event.message
    )


def _header(rollout: rollout_pb2.Rollout, now_s: float) -> RenderableType:
    status = rollout.status
    words, style = PHASES[status.phase]
    first = Text.assemble((key_of(rollout), "bold"), "  ", (words, style))
    if status.stage and status.phase in _RUNNING:
        first.append(f"  stage {status.stage} of {status.stages}: {status.stage_text}")
    facts = [f"host {rollout.spec.host}"]
    if status.HasField("started_at"):
        facts.append(f"started {age(now_s - seconds_of(status.started_at))} ago")
    if status.HasField("ended_at"):
        facts.append(f"ended {age(now_s - seconds_of(status.ended_at))} ago")
    elif status.HasField("stage_since"):
        facts.append(f"in this stage for {age(now_s - seconds_of(status.stage_since))}")
    if status.requests_per_second:
        facts.append(f"{status.requests_per_second:.3g} requests/s")
    lines = [first, Text(" · ".join(facts), style="dim")]
    if status.message:
        lines.append(Text(status.message, style=style if status.phase in ENDED else ""))
    if status.problem:
        lines.append(Text(status.problem, style="red"))
    if status.winner:
        lines.append(Text(winner_text(rollout), style="green"))
    return Group(*lines)


def _traffic(rollout: rollout_pb2.Rollout) -> RenderableType:
    status = rollout.status
    table = _table("TRAFFIC", "", "WANTED", "OBSERVED")
    versions = list(dict.fromkeys([rollout.spec.baseline, *candidates_of(rollout.spec)]))
    versions += sorted({*status.desired.weights, *status.observed.weights} - set(versions))
    is_known = status.HasField("observed")
    for name in versions:
        wanted = status.desired.weights.get(name, 0.0)
        observed = status.observed.weights.get(name, 0.0)
        differs = is_known and status.HasField("desired") and wanted != observed
        table.add_row(
            Text(name, style="bold" if name == rollout.spec.baseline else ""),
            _bar((observed if is_known else wanted) / 100, _BAR, "cyan"),
            f"{wanted:g}%" if status.HasField("desired") else "–",
            Text(f"{observed:g}%" if is_known else "–", style="yellow" if differs else ""),
        )
    lines: list[RenderableType] = [table]
    extras = [f"copies to {name} {percent:g}%" for name, percent in status.desired.mirrors.items()]
    extras += status.desired.testers
    extras += [f"sticky by {status.desired.sticky}"] if status.desired.sticky else []
    if extras:
        lines.append(Text(", ".join(extras), style="dim"))
    if status.HasField("desired") and not status.in_force:
        lines.append(Text("the split is on its way to the proxies", style="yellow"))
    return Group(*lines)


def _objectives(
    rollout: rollout_pb2.Rollout, assessment: rollout_pb2.Assessment, sizes: _Sizes
) -> RenderableType:
    numbers = ("",) if sizes.has_numbers else ()
    table = _table(
        *("OBJECTIVE", "", rollout.spec.baseline, assessment.candidate, "EFFECT"),
        *("HARM", *numbers, "SAFETY", *numbers),
    )
    for found, objective in zip(assessment.objectives, rollout.spec.objectives, strict=False):
        verdict, style = VERDICTS[found.verdict]
        base = found.baseline_value if found.HasField("baseline_value") else None
        candidate = found.candidate_value if found.HasField("candidate_value") else None
        table.add_row(
            found.metric,
            Text(verdict, style=style),
            value_text(objective, base),
            value_text(objective, candidate),
            _effect(objective, found, sizes.scale),
            *_evidence(found.harm_e, found.harm_threshold, "red", sizes),
            *_evidence(found.safe_e, found.safe_threshold, "green", sizes),
        )
    together = Text.assemble(
        "all together  ",
        _bar(evidence_share(assessment.harm_e, assessment.harm_threshold), sizes.gauge, "red"),
        (f"  {evidence_text(assessment.harm_e, assessment.harm_threshold)} to abort", "dim"),
    )
    lines: list[RenderableType] = [table, together]
    if assessment.sample_ratio.mismatch:
        lines.append(Text("the versions do not get their intended shares", style="bold red"))
    return Group(*lines)


def _evidence(e: float, threshold: float, style: str, sizes: _Sizes) -> list[Text]:
    """An e-value against its threshold on a log scale, and as numbers where there is room."""
    bar = _bar(evidence_share(e, threshold), sizes.gauge, style)
    return [bar, Text(evidence_text(e, threshold), style="dim")] if sizes.has_numbers else [bar]


def _effect(
    objective: rollout_pb2.Objective, found: rollout_pb2.ObjectiveAssessment, width: int
) -> Text:
    """The effect with its confidence sequence on a small scale; ``|`` is the limit."""
    limit = found.effect_limit
    words = limit_text(objective, limit)
    is_gauge = objective.signal == rollout_pb2.SIGNAL_PROMQL
    words = f"limit {words}" if width or is_gauge else f"≤ {words}"
    if not found.HasField("effect"):
        return Text(words, style="dim")
    words = f"{effect_text(objective, found.effect)} ({words})"
    if not width or not limit > 0 or not math.isfinite(limit):
        return Text(words)

    def place(value: float) -> int:
        # A hundredth to hundred times the limit, on a log scale with the limit in the middle.
        ratio = math.log10(max(value, 1e-9) / limit) if math.isfinite(value) else 2.0
        return round((min(max(ratio, -2.0), 2.0) + 2) / 4 * (width - 1))

    left = place(found.effect_low) if found.HasField("effect_low") else 0
    right = place(found.effect_high) if found.HasField("effect_high") else width - 1
    cells = ["─" if left <= at <= right else "·" for at in range(width)]
    cells[place(limit)] = "|"
    cells[place(found.effect)] = "●"
    style = "green" if right <= place(limit) else "red" if left >= place(limit) else "cyan"
    return Text.assemble(("".join(cells), style), f" {words}")


def _limits(rollout: rollout_pb2.Rollout, now_s: float) -> Iterator[Text]:
    status = rollout.status
    if status.HasField("harm_budget") and status.harm_budget > 0:
        share = max(0.0, status.harm_spent) / status.harm_budget
        words = f"  {status.harm_spent:.1f} of {status.harm_budget:g} extra bad requests"
        bar = _bar(share, _BAR, "red" if share >= 1 else "yellow")
        yield Text.assemble(("HARM  ", "bold"), bar, words)
    elif status.assessments:
        yield Text.assemble(
            ("HARM  ", "bold"), f"{status.harm_spent:.1f} extra bad requests, by the best estimate"
        )
    if status.HasField("decide_by"):
        left_s = seconds_of(status.decide_by) - now_s
        within = rollout.spec.decide.within
        within_s = within.seconds + within.nanos / 1e9 or 7200.0
        bar = _bar(min(1.0, max(0.0, left_s / within_s)), _BAR, "cyan")
        yield Text.assemble(("TIME  ", "bold"), bar, f"  {age(left_s)} of {age(within_s)} left")


def _bar(share: float, width: int, style: str) -> Text:
    filled = round(min(max(share, 0.0), 1.0) * width)
    if share > 0 and not filled:
        filled = 1
    return Text.assemble(("█" * filled, style), ("░" * (width - filled), "bright_black"))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table
