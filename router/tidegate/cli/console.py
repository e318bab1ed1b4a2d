"""Input and output that commands share: the consoles, JSON lines, files, and Ctrl-C."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "INTERRUPTED",
    "JsonOption",
    "errors",
    "exit_on_interrupt",
    "print_json",
    "readable",
    "results",
]

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as in shells: 128 plus the number of SIGINT."""

# JSON escapes other control characters itself, and terminals obey these too.
_JSON_ESCAPES: Final = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def results() -> "Console":
    """The console for results, on standard output; a pipe gets lines of any length."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=1000 if piped else None)


def errors() -> "Console":
    """The console for progress and errors, on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Mapping[str, object]) -> None:
    """Writes one object as one line of JSON to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False).translate(_JSON_ESCAPES) + "\n")
    sys.stdout.flush()


def readable(path: Path) -> str:
    """Reads the text of a file that an option names.

    Raises:
        typer.BadParameter: The file cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}") from error


@contextmanager
def exit_on_interrupt(continues: str) -> Iterator[None]:
    """Ends a command on Ctrl-C, and says that its work continues in another process.

    The command only waits for that work, and a user who presses Ctrl-C often means to stop it.

    Args:
        continues: What continues, how to follow it, and how to stop it or undo it.
    """
    try:
        yield
    except KeyboardInterrupt:
        # The terminal has shown ^C on the line of the cursor.
        typer.echo(f"\ninterrupted: {continues}", err=True)
        raise typer.Exit(INTERRUPTED) from None
