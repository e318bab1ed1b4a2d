"""Commands that are imported only when they run, so that ``tidegate --help`` answers at once.

The command line's own commands stand in a table here. Other parts of the distribution add theirs as
entry points of the group ``tidegate.commands``; their help line is the first line of their module's
docstring, read from the file without importing it, since a module may need packages that are not
installed. When such a command is called, the error says which extra to install.
"""

import ast
import difflib
import importlib
import importlib.machinery
import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from tidegate.errors import TidegateError

__all__ = ["LazyGroup", "MissingExtraError"]

_GROUP = "tidegate.commands"
_DISTRIBUTION = "tidegate"


class MissingExtraError(TidegateError):
    """A command needs packages that are not installed."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a command is.

    Attributes:
        module: the module that has it.
        attribute: its name there: a function, or a ``typer.Typer`` of several commands.
        summary: its line in the list of commands; read from the module when empty.
    """

    module: str
    attribute: str
    summary: str = ""


_OWN = {
    "classify": _Source("tidegate.cli.classify", "classify", "Say what images show."),
    "chat": _Source("tidegate.cli.chat", "chat", "Talk to a language model."),
    "models": _Source("tidegate.cli.models", "models", "List what the servers serve."),
    "up": _Source("tidegate.mesh.supervisor.commands", "up", "Start the servers here."),
    "down": _Source("tidegate.mesh.supervisor.commands", "down", "Stop them."),
    "status": _Source("tidegate.mesh.supervisor.commands", "status", "Show how they are."),
    "restart": _Source("tidegate.mesh.supervisor.commands", "restart", "Restart one of them."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are in modules that are not imported yet."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # the framework's signature
        """Every command: our own in the order of use, then those of other parts."""
        return [*_OWN, *sorted(_sources().keys() - _OWN.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """A stand-in with the command's help line; :meth:`resolve_command` has the command."""
        source = _sources().get(cmd_name)
        if source is None:
            return None
        return TyperCommand(cmd_name, help=source.summary or _first_doc_line(source.module))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is called, imported.

        Raises:
            MissingExtraError: it needs packages that are not installed.
        """
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "see `tidegate --help`."
            ctx.fail(f"There is no command '{args[0]}'; {hint}")
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or stand_in is None:
            return name, stand_in, rest
        return name, _load(name, _sources()[name]), rest


def _sources() -> dict[str, _Source]:
    others = {
        point.name: _Source(point.module, point.attr)
        for point in importlib.metadata.entry_points(group=_GROUP)
    }
    return {**others, **_OWN}


def _load(name: str, source: _Source) -> Any:
    try:
        found = getattr(importlib.import_module(source.module), source.attribute)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] == _DISTRIBUTION:
            raise
        raise MissingExtraError(_advice(name, missing)) from error
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


def _advice(command: str, module: str) -> str:
    """Which extra brings a module, as far as the distribution's own metadata tells."""
    top = module.split(".")[0]
    wanted = top.replace("_", "-").lower()
    extras = [
        found.group(1)
        for requirement in importlib.metadata.requires(_DISTRIBUTION) or ()
        if re.split(r"[ ;<>=!~\[]", requirement, maxsplit=1)[0].lower() == wanted
        and (found := re.search(r"extra == ['\"]([\w-]+)['\"]", requirement))
    ]
    if not extras:
        return (
            f"`tidegate {command}` needs the package of the module {top!r}, which is not "
            "installed; the README says which extra has it"
        )
    # An extra of the command's own subject comes first: `tidegate model` and the extra `models`.
    best = min(extras, key=lambda extra: not extra.startswith(command))
    return f"`tidegate {command}` needs {top!r}: pip install 'tidegate[{best}]'"


def _first_doc_line(module: str) -> str:
    """The first line of a module's docstring, read without running it or its packages."""
    places = list(sys.path)
    spec: importlib.machinery.ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), places)
        if spec is None:
            return ""
        places = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
    line = doc.partition("\n")[0]
    # "``tidegate model``: build models" says its name again.
    return re.sub(r"^`+[^`]+`+: +", "", line)
