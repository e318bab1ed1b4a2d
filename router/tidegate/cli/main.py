"""``tidegate``: the entry point, which turns errors into messages and exit statuses.

Results go to standard output and everything else to standard error, so that output can be piped.
The exit status:

====  ==============================================================
0     the command succeeded
1     the command, or a part of it, failed; standard error says what and why
2     the command line is wrong
3     no server answers
4     `rollout apply --wait`: a rollout has not ended
130   the user interrupted the command
====  ==============================================================
"""

import os
import sys
from typing import Annotated

import typer

from tidegate.cli.groups import LazyGroup
from tidegate.errors import TidegateError

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_UNREACHABLE = 3

_ADVICE = (
    "Start the servers with `tidegate up`, or say where they are: --vision, --llm, or --address for"
    " the controller."
)

app = typer.Typer(
    cls=LazyGroup,
    help="Serve vision and language models over gRPC, and call them.",
    epilog=(
        "Exit status: 0 all worked, 1 something failed, 2 wrong command line, "
        "3 no server answers, 130 interrupted."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"tidegate {version_of('tidegate')}")
        raise typer.Exit


def main() -> None:
    """Runs the command line and exits."""
    # gRPC's own log lines would hide the message below.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except TidegateError as error:
        sys.exit(_report(error))
    except BrokenPipeError:
        # The reader of the output has gone; Python must not flush standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


def _report(error: TidegateError) -> int:
    # Errors quote what other people wrote. Most commands never need this module.
    from tidegate.rollout.texts import escaped

    unreachable = bool(getattr(error, "unreachable", False))
    typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False, color=_colour())
    typer.echo(escaped(str(error)), err=True)
    if unreachable:
        typer.echo(getattr(error, "advice", _ADVICE), err=True)
    return EXIT_UNREACHABLE if unreachable else EXIT_FAILED


def _colour() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None
