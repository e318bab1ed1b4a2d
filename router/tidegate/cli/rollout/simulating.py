"""``tidegate rollout simulate``: try a rollout on synthetic traffic before anyone ships it."""

import random
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from tidegate.cli.console import JsonOption, errors, print_json, results
from tidegate.cli.rollout.words import age
from tidegate.evidence.words import number, percent
from tidegate.rollout.simulation.behaviour import Behaviour, BehaviourError, Change, parse_facts
from tidegate.rollout.simulation.runs import End, Run, Scenario
from tidegate.rollout.simulation.summary import Quantiles, Summary, run_many, summary_of
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.spec.objectives import Signal
from tidegate.rollout.spec.quantities import duration_seconds, duration_text
from tidegate.rollout.spec.reading import read_files

__all__ = ["parse_rate", "simulate"]

_STYLES: Final = {
    End.PROMOTED: "green",
    End.COMPLETED: "green",
    End.ABORTED: "red",
    End.PAUSED: "yellow",
    End.OPEN: "yellow",
}
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_FACTS: Final = "KEY=VALUE,…"


def simulate(
    file: Annotated[Path, typer.Argument(help="The file of the rollout.", metavar="FILE")],
    rate: Annotated[
        str, typer.Option("--rate", help="Requests of the host: 100/s, 600/m.", metavar="N/s")
    ] = "100/s",
    baseline: Annotated[
        str,
        typer.Option(
            "--baseline",
            help="How the baseline behaves: failures=0.1%,latency=20ms. Numbers are medians.",
            metavar=_FACTS,
        ),
    ] = "",
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            help="What the candidate does otherwise: failures=2%. With several candidates,"
            " NAME:failures=2%.",
            metavar=_FACTS,
            show_default=False,
        ),
    ] = None,
    candidate_after: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate-after",
            help="What the candidate does otherwise from a time on: 10m:failures=5%.",
            metavar=f"TIME:{_FACTS}",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=100_000, help="How many runs.")] = 200,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Repeats the same runs; by default new ones each time."),
    ] = None,
    approve_after: Annotated[
        str, typer.Option("--approve-after", help="How long a person takes to approve a step.")
    ] = "0s",
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Write a plot: FILE.svg or FILE.html.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option("--name", help="Which rollout, if the file has several.", show_default=False),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Run a rollout many times on synthetic traffic: how long, how sure, and what it costs users.

    The real engine decides, in simulated time. What --baseline does not name is that of a healthy
    version, and what --candidate does not name is as in the baseline.
    """
    if plot is not None and plot.suffix not in (".svg", ".html"):
        raise typer.BadParameter(f"--plot {plot}: write a file .svg or .html")
    rollout = _rollout(file, name)
    names = tuple(each.metric for each in rollout.spec.objectives if each.signal is Signal.PROMQL)
    usual = _facts("--baseline", baseline, names)
    scenario = Scenario(
        rollout=rollout,
        baseline=Behaviour(usual),
        candidates=_candidates(rollout, usual, candidate or [], candidate_after or [], names),
        requests_per_s=parse_rate(rate),
        limit_s=_limit_s(rollout),
        approve_after_s=_duration("--approve-after", approve_after),
    )
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    console = errors()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"simulating {rollout.metadata.name}", total=runs)
        found = run_many(scenario, runs, seed, lambda: progress.advance(task))
    summary = summary_of(found)
    if plot is not None:
        _write_plot(plot, found, rollout, rate)
    if as_json:
        print_json({"seed": seed, **msgspec.to_builtins(summary)})
        return
    _show_assumptions(scenario, rate, baseline, candidate or [], candidate_after or [], runs)
    _show(summary, seed)
    if plot is not None:
        errors().print(Text(f"wrote {plot}"))


def parse_rate(text: str) -> float:
    """Reads ``100/s`` as requests per second.

    Raises:
        typer.BadParameter: The text has another form.
    """
    count, slash, unit = text.partition("/")
    try:
        found = float(count) / _UNITS[unit if slash else "s"]
    except (KeyError, ValueError):
        found = 0.0
    if not 0 < found <= 1e6:
        raise typer.BadParameter(f"--rate {text}: write it like 100/s, 600/m, at most 1000000/s")
    return found


def _rollout(file: Path, name: str) -> Rollout:
    found = [each.rollout for each in read_files([file])]
    known = ", ".join(each.metadata.name for each in found)
    if name:
        found = [each for each in found if each.metadata.name == name]
        if not found:
            raise typer.BadParameter(f"--name {name}: {file} has {known}")
    if len(found) != 1:
        raise typer.BadParameter(f"{file} has {known or 'no rollout'}; choose one with --name")
    return found[0]


def _candidates(
    rollout: Rollout,
    usual: dict[str, float],
    given: list[str],
    later: list[str],
    names: tuple[str, ...],
) -> dict[str, Behaviour]:
    facts = {each: dict(usual) for each in rollout.spec.candidate_names}
    changes: dict[str, list[Change]] = {each: [] for each in facts}
    for text in given:
        for each, found in _named("--candidate", text, facts, names):
            facts[each] |= found
    for given_text in later:
        after, colon, text = given_text.partition(":")
        if not colon:
            raise typer.BadParameter(
                f"--candidate-after {given_text}: write it like 10m:failures=5%"
            )
        after_s = _duration("--candidate-after", after)
        for each, found in _named("--candidate-after", text, facts, names):
            changes[each].append(Change(after_s=after_s, facts=found))
    return {each: Behaviour(found, tuple(changes[each])) for each, found in facts.items()}


def _named(
    option: str, text: str, known: dict[str, dict[str, float]], names: tuple[str, ...]
) -> list[tuple[str, dict[str, float]]]:
    """The candidates that an option is about, with its facts."""
    before, colon, after = text.partition(":")
    if not colon:
        return [(each, _facts(option, text, names)) for each in known]
    if before not in known:
        raise typer.BadParameter(f"{option} {text}: the candidates are {', '.join(known)}")
    return [(before, _facts(option, after, names))]


def _facts(option: str, text: str, names: tuple[str, ...]) -> dict[str, float]:
    try:
        return parse_facts(text, names)
    except BehaviourError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def _duration(option: str, text: str) -> float:
    try:
        return duration_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {text} {error}") from error


def _limit_s(rollout: Rollout) -> float:
    """When a run is given up: nothing of the rollout can take longer by itself."""
    strategy = rollout.spec.strategy
    limit_s = rollout.spec.decide.within
    steps = strategy.canary.steps if strategy.canary is not None else None
    limit_s += sum(each.pause.for_time or 0.0 for each in steps or () if each.pause is not None)
    for part in (strategy.ab, strategy.shadow):
        limit_s += 0.0 if part is None else part.lasting or 0.0
    if strategy.blue_green is not None:
        limit_s += strategy.blue_green.watch
    return 1.1 * limit_s + 600


def _write_plot(path: Path, runs: tuple[Run, ...], rollout: Rollout, rate: str) -> None:
    from tidegate.cli.rollout.pages import page
    from tidegate.cli.rollout.plots import simulation_plot, svg

    title = f"{rollout.metadata.name}: {len(runs)} simulated runs at {rate}"
    drawn = svg(simulation_plot(runs, title))
    text = drawn if path.suffix == ".svg" else page(title, [drawn])
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--plot {path}: {error.strerror or error}") from error


def _show_assumptions(
    scenario: Scenario,
    rate: str,
    baseline: str,
    candidate: list[str],
    candidate_after: list[str],
    runs: int,
) -> None:
    spec = scenario.rollout.spec
    signals = dict.fromkeys(each.signal for each in spec.objectives)
    usual = [
        f"{'failures' if each is Signal.GRPC_FAILURES else each}"
        f"={_fact_text(each, scenario.baseline.fact(each))}"
        for each in signals
        if each is not Signal.PROMQL
    ]
    # What no objective looks at was given for a reason too.
    known = {each.partition("=")[0] for each in usual}
    given = [each.strip() for each in baseline.split(",") if each.strip()]
    usual += [each for each in given if _fact_name(each) not in known]
    changes = [*candidate, *(f"after {each}" for each in candidate_after)]
    rows = (
        ("requests", f"{rate} to {spec.host}"),
        (f"baseline {spec.baseline}", ", ".join(usual) or "nothing that an objective looks at"),
        (
            f"candidate {', '.join(spec.candidate_names)}",
            f"{'; '.join(changes)}; else as the baseline" if changes else "as the baseline",
        ),
        ("runs", f"{runs} of {scenario.rollout.metadata.name}"),
    )
    width = max(len(title) for title, _ in rows)
    for title, words in rows:
        results().print(Text(f"{title:<{width}}  {words}"), soft_wrap=True)
    results().print()


def _fact_name(fact: str) -> str:
    name = fact.partition("=")[0].strip()
    return "failures" if name == Signal.GRPC_FAILURES else name


def _fact_text(signal: Signal, value: float) -> str:
    if signal.is_duration:
        return duration_text(value)
    is_number = signal in (Signal.TOKENS_PER_ANSWER, Signal.CONFIDENCE, Signal.ENDPOINT_LOAD)
    return number(value) if is_number else percent(value)


def _show(summary: Summary, seed: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("END", "RUNS", "SHARE", "10% BY", "50% BY", "90% BY"):
        table.add_column(title, justify="left" if title == "END" else "right")
    for end in End:
        count = summary.ends[end.value]
        if count:
            times = summary.time_s[end.value]
            table.add_row(
                Text(end.value, style=_STYLES[end]),
                *(str(count), f"{count / summary.runs:.1%}"),
                *(age(each) for each in (times.p10, times.p50, times.p90)),
            )
    console = results()
    console.print(table)
    console.print(Text("10% BY: a tenth of these runs had ended by then", style="dim"))
    console.print()
    extra = _worded(summary.extra_bad)
    console.print(f"extra bad requests of users   {extra}, mean {number(summary.extra_bad_mean)}")
    console.print(f"requests to the candidate     {_worded(summary.candidate_requests)}")
    if summary.approvals:
        console.print(f"approvals by a person         {number(summary.approvals)} a run")
    for ended, reason in summary.reasons.items():
        console.print(Text(f"{ended}, for example: {reason}", style="dim"))
    console.print(Text(f"seed {seed}; --seed {seed} repeats these runs", style="dim"))


def _worded(quantiles: Quantiles) -> str:
    numbers = (quantiles.p10, quantiles.p50, quantiles.p90)
    low, middle, high = (number(each) for each in numbers)
    return f"{middle} ({low} to {high} in 80% of the runs)"
