"""The table of commands. A command's module is imported only when the command runs.

So ``tidegate --help`` answers at once, and a command may need packages that are not installed. The
error of such a command names the extra to install. To add a command, add a line to `_COMMANDS`.
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from tidegate.errors import TidegateError

__all__ = ["Command", "LazyGroup", "MissingExtraError"]

_DISTRIBUTION = "tidegate"


class MissingExtraError(TidegateError):
    """A command needs packages that are not installed."""


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is defined.

    Attributes:
        module: The module that defines it.
        attribute: Its name there: a function, or a ``typer.Typer`` of several commands.
        summary: Its line in the list of commands.
        extra: The extra of the distribution that it needs; empty if the base install is enough.
    """

    module: str
    attribute: str
    summary: str
    extra: str = ""


# In the order of `tidegate --help`.
_COMMANDS = {
    "classify": Command("tidegate.cli.serving.classify", "classify", "Label images."),
    "chat": Command("tidegate.cli.serving.chat", "chat", "Talk to a language model."),
    "models": Command("tidegate.cli.serving.models", "models", "List the models of the servers."),
    "up": Command(
        "tidegate.cli.servers.commands", "up", "Start the servers on this machine.", "local"
    ),
    "down": Command("tidegate.cli.servers.commands", "down", "Stop the servers.", "local"),
    "status": Command("tidegate.cli.servers.commands", "status", "Show the servers.", "local"),
    "restart": Command("tidegate.cli.servers.commands", "restart", "Restart one server.", "local"),
    "mesh": Command(
        "tidegate.cli.mesh.commands",
        "app",
        "Check and explain the mesh's Istio objects, show its state, undo shifts.",
        "local",
    ),
    "model": Command("tidegate.cli.build", "app", "Build models from published weights.", "models"),
    "shift": Command("tidegate.cli.mesh.shift", "shift", "Move traffic between versions.", "local"),
    "rollout": Command(
        "tidegate.cli.rollout.commands",
        "app",
        "Move traffic to a new version on evidence: apply, watch, simulate.",
        "router",
    ),
    "dashboard": Command(
        "tidegate.cli.dashboard.commands",
        "app",
        "Draw the dashboards of a Prometheus, without Grafana.",
        "router",
    ),
    "trace": Command(
        "tidegate.cli.traces.commands", "app", "Find traces, show them, and say where time goes."
    ),
}


class LazyGroup(TyperGroup):
    """A group of commands whose modules are imported on demand.

    Attributes:
        path: How the group is called.
        table: The commands by name, in the order in which `--help` lists them.
    """

    path: ClassVar[str] = "tidegate"
    table: ClassVar[Mapping[str, Command]] = _COMMANDS

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # the framework's signature
        """Lists the names of all commands, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Returns a placeholder with the help line of a command, which is not imported yet."""
        command = self.table.get(cmd_name)
        return None if command is None else TyperCommand(cmd_name, help=command.summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Imports and returns the command that is called.

        Raises:
            MissingExtraError: The command needs packages that are not installed.
        """
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"see `{self.path} --help`."
            ctx.fail(f"There is no command '{args[0]}'; {hint}")
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None or placeholder is None:
            return name, placeholder, rest
        return name, _load(name, self.table[name], self.path), rest


def _load(name: str, source: Command, path: str) -> Any:
    try:
        found = getattr(importlib.import_module(source.module), source.attribute)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] == _DISTRIBUTION:
            raise
        raise MissingExtraError(_advice(f"{path} {name}", source.extra, missing)) from error
    if isinstance(found, typer.Typer):
        command: Any = get_group(found)
    else:
        app = typer.Typer(
            add_completion=False,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        app.command(name)(found)
        command = get_command(app)
    command.name = name
    return command


def _advice(command: str, extra: str, module: str) -> str:
    top = module.partition(".")[0]
    what = f"tidegate[{extra}]" if extra else "tidegate"
    return f"`{command}` needs {top!r}, which is not installed: pip install '{what}'"
