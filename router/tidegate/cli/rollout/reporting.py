"""``tidegate rollout report``: one HTML page with everything about a rollout."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from tidegate.cli.console import JsonOption, errors
from tidegate.cli.rollout.client import (
    AddressOption,
    ContextOption,
    Home,
    KubeconfigOption,
    NameArgument,
    NamespaceOption,
    find_target,
    key_of,
    rollout_service,
)
from tidegate.cli.rollout.explaining import explanation
from tidegate.cli.rollout.following import print_message
from tidegate.cli.rollout.pages import heading, page, paragraph, preformatted, table
from tidegate.cli.rollout.words import (
    PHASES,
    VERDICTS,
    age,
    candidates_of,
    effect_interval,
    evidence_text,
    limit_text,
    moment,
    seconds_of,
    split_text,
    value_text,
)
from tidegate.evidence.words import number
from tidegate.rollout.messages import rollout_of
from tidegate.rollout.spec.reading import dump
from tidegate.rollout.texts import escaped_message
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["report", "report_page"]

_STYLES: Final = {
    rollout_pb2.PHASE_PROMOTED: "good",
    rollout_pb2.PHASE_COMPLETED: "good",
    rollout_pb2.PHASE_ABORTED: "bad",
    rollout_pb2.PHASE_REFUSED: "bad",
}
_VERDICT_STYLES: Final = {
    rollout_pb2.VERDICT_MET: "good",
    rollout_pb2.VERDICT_MISSED: "bad",
}
_E_VALUES: Final = (
    "An e-value measures evidence for a claim: were the claim false, the e-value would ever reach"
    " 20 with a probability of at most 1 in 20."
)
_SHORT: Final = 80
_DECISIONS: Final = ("Promoting", "Aborting", "Completing", "Refused", "Undone", "Paused")


def report(
    name: NameArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the page; - for standard output. Default: NAME.html.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Write a page about a rollout: the decision, its evidence over time, its history.

    The page needs no network. With --json, print what the page is made of.
    """
    namespace, name = find_target(name, namespace)
    home = Home(address, context, kubeconfig)
    with rollout_service(home) as service:
        rollout = service.Get(rollout_pb2.GetRequest(namespace=namespace, name=name)).rollout
        history = service.GetHistory(
            rollout_pb2.GetHistoryRequest(namespace=namespace, name=name, with_samples=True)
        )
    if as_json:
        print_message(history, rollout=key_of(rollout))
        return
    rollout, history = escaped_message(rollout), escaped_message(history)
    text = report_page(rollout, history, time.time(), cluster=home.options)
    if str(output) == "-":
        sys.stdout.write(text)
        return
    path = output or Path(f"{name}.html")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--output {path}: {error.strerror or error}") from error
    errors().print(Text(f"wrote {path}"))


def report_page(
    rollout: rollout_pb2.Rollout,
    history: rollout_pb2.GetHistoryResponse,
    now_s: float,
    *,
    cluster: str = "",
) -> str:
    """Returns the page.

    Args:
        rollout: The rollout with its status.
        history: Its events and samples.
        now_s: The time, in seconds since the epoch.
        cluster: The options that name the rollout's cluster in a command; empty for a laptop.
    """
    parts = [
        *_summary(rollout, now_s, cluster),
        *_verdicts(rollout),
        *_plots(rollout, history),
        *_history(history, rollout.status.message),
        heading("The rollout as a file"),
        preformatted(dump(rollout_of(rollout))),
    ]
    return page(f"Rollout {key_of(rollout)}", parts)


def _summary(rollout: rollout_pb2.Rollout, now_s: float, cluster: str) -> Iterator[str]:
    status, spec = rollout.status, rollout.spec
    candidates = candidates_of(spec)
    yield heading(f"Rollout {key_of(rollout)}", 1)
    words = PHASES[status.phase][0]
    yield paragraph(words.capitalize(), _STYLES.get(status.phase, "open"))
    yield paragraph(status.message)
    rows = [
        ("host", spec.host),
        ("baseline", spec.baseline),
        ("candidates" if len(candidates) > 1 else "candidate", ", ".join(candidates)),
        ("strategy", _strategy(spec)),
    ]
    if status.HasField("started_at"):
        rows.append(("started", moment(status.started_at)))
        until_s = seconds_of(status.ended_at) if status.HasField("ended_at") else now_s
        rows.append(("took", age(until_s - seconds_of(status.started_at))))
    if status.winner and spec.strategy.WhichOneof("kind") != "shadow":
        rows.append(("winner", status.winner))
    if status.HasField("desired"):
        rows.append(("traffic", split_text(status.desired)))
    if status.assessments:
        budget = f" of a budget of {status.harm_budget:g}" if status.HasField("harm_budget") else ""
        rows.append(("extra bad requests", f"{status.harm_spent:.1f}{budget}"))
    rates = spec.decide
    words = f"a good candidate is aborted with a probability of at most {rates.false_abort:.3g},"
    words += f" a bad one promoted with at most {rates.bad_promotion:.3g}"
    rows.append(("error rates", words))
    yield table(("", ""), rows)
    # The reason stands above.
    lines = explanation(rollout, now_s, with_reason=False, cluster=cluster)
    yield heading("In words")
    yield from map(paragraph, lines)


def _strategy(spec: rollout_pb2.RolloutSpec) -> str:
    kind = spec.strategy.WhichOneof("kind") or ""
    if kind == "canary":
        return "canary with a ramp" if spec.strategy.canary.HasField("ramp") else "canary in steps"
    return {"ab": "A/B test", "blue_green": "blue-green"}.get(kind, kind)


def _verdicts(rollout: rollout_pb2.Rollout) -> Iterator[str]:
    baseline = rollout.spec.baseline
    if rollout.status.assessments:
        yield paragraph(_E_VALUES, "dim")
    for assessment in rollout.status.assessments:
        candidate = assessment.candidate
        yield heading(f"Objectives of {candidate}")
        rows = []
        for found, objective in zip(assessment.objectives, rollout.spec.objectives, strict=False):
            verdict = VERDICTS[found.verdict][0]
            base = found.baseline_value if found.HasField("baseline_value") else None
            value = found.candidate_value if found.HasField("candidate_value") else None
            rows.append(
                (
                    found.metric,
                    (verdict, _VERDICT_STYLES.get(found.verdict, "open")),
                    f"{value_text(objective, base)} of {found.baseline_trials:,}",
                    f"{value_text(objective, value)} of {found.candidate_trials:,}",
                    effect_interval(objective, found) or "–",
                    limit_text(objective, found.effect_limit),
                    evidence_text(found.harm_e, found.harm_threshold),
                    evidence_text(found.safe_e, found.safe_threshold),
                )
            )
        titles = ("objective", "verdict", baseline, candidate, "effect", "tolerated")
        yield table((*titles, "e-value of harm", "e-value that it is met"), rows)
        yield paragraph(_shortened(assessment.reason, rollout.status.message), "dim")


def _plots(rollout: rollout_pb2.Rollout, history: rollout_pb2.GetHistoryResponse) -> Iterator[str]:
    samples = list(history.samples)
    if len(samples) < 2:
        yield heading("Over time")
        yield paragraph("There are no samples yet.", "dim")
        return
    # Drawing needs a library that takes a second to import.
    from tidegate.cli.rollout import plots

    status = rollout.status
    yield heading("Traffic")
    yield plots.svg(plots.traffic_plot(samples, history.events), "traffic")
    yield paragraph("Solid: wanted. Dotted: observed. Dashed lines: decisions.", "dim")
    # Without objectives there is nothing to draw.
    candidates = sorted(
        {
            each.candidate
            for sample in samples
            for each in sample.assessments
            if rollout.spec.objectives
        }
    )
    for candidate in candidates:
        yield heading(f"Evidence about {candidate}")
        yield plots.svg(plots.evidence_plot(samples, candidate, safe=False), f"{candidate} harm")
        yield plots.svg(plots.evidence_plot(samples, candidate, safe=True), f"{candidate} safe")
        yield heading(f"Effects of {candidate}, with confidence sequences")
        for at, objective in enumerate(rollout.spec.objectives):
            figure = plots.effect_plot(samples, candidate, objective, at)
            if figure is not None:
                yield plots.svg(figure, f"{candidate} effect {at}")
    yield heading("Harm")
    budget = status.harm_budget if status.HasField("harm_budget") else None
    yield plots.svg(plots.harm_plot(samples, budget), "harm")


def _shortened(text: str, told: str) -> str:
    """Returns a text, or its beginning if the page has told it in full."""
    is_told = bool(told) and (text in told or told in text)
    return f"{text[:_SHORT].rstrip()} …" if is_told and len(text) > _SHORT else text


def _history(history: rollout_pb2.GetHistoryResponse, told: str) -> Iterator[str]:
    decisions = [each for each in history.events if each.kind in _DECISIONS]
    if decisions:
        last = decisions[-1]
        yield heading("The last decision")
        yield paragraph(f"{last.kind}: {_shortened(last.message, told)}")
        if last.numbers:
            yield table(
                ("number", "value"),
                [(name, number(value)) for name, value in sorted(last.numbers.items())],
            )
    yield heading("History")
    yield table(
        ("#", "time", "event", "what and why"),
        [
            (str(each.number), moment(each.time), each.kind, _shortened(each.message, told))
            for each in history.events
        ],
    )
