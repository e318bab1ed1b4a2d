"""``tidegate rollout``: the table of its commands.

    tidegate rollout lint vision-int8.yaml
    tidegate rollout simulate vision-int8.yaml --candidate failures=2%
    tidegate rollout apply -f vision-int8.yaml --wait --timeout 2h
    tidegate rollout watch vision-int8
    tidegate rollout report vision-int8 -o report.html

A command's module is imported only when the command runs: simulations and reports take a second to
import.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

import typer

from tidegate.cli.groups import Command, LazyGroup

__all__ = ["app"]

_PACKAGE: Final = "tidegate.cli.rollout"
_ROWS: Final = (
    ("applying", "apply", "apply", "Create rollouts, or change those of the same names."),
    ("showing", "list_rollouts", "list", "List the rollouts."),
    ("showing", "get", "get", "Show one rollout on one screen."),
    ("showing", "watch", "watch", "Watch a rollout live, or all of them."),
    ("showing", "explain", "explain", "Say what a rollout waits for, and why."),
    ("showing", "history", "history", "Show what happened to a rollout, and why."),
    ("reporting", "report", "report", "Write a page about a rollout, with plots."),
    ("commanding", "pause", "pause", "Hold the split as it is."),
    ("commanding", "resume", "resume", "Go on after a pause."),
    ("commanding", "promote", "promote", "Approve a step, or promote at once."),
    ("commanding", "abort", "abort", "Give the baseline all traffic."),
    ("commanding", "retry", "retry", "Begin an ended rollout again."),
    ("commanding", "undo", "undo", "Put the traffic back to what it was before."),
    ("commanding", "delete", "delete", "Remove a rollout that has ended."),
    ("simulating", "simulate", "simulate", "Try a rollout on synthetic traffic."),
    ("linting", "lint", "lint", "Find mistakes in rollout files."),
)


class _Group(LazyGroup):
    """The commands of rollouts."""

    path: ClassVar[str] = "tidegate rollout"
    table: ClassVar[Mapping[str, Command]] = {
        name: Command(f"{_PACKAGE}.{module}", attribute, summary, "router")
        for module, attribute, name, summary in _ROWS
    }


app = typer.Typer(
    cls=_Group,
    help="Move traffic to a new version on evidence.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Move traffic to a new version on evidence."""
