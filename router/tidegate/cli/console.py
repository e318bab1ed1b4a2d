"""Where output goes: results to standard output, everything else to standard error."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["JsonOption", "LlmOption", "VisionOption", "errors", "print_json", "results"]

VisionOption = Annotated[
    str | None,
    typer.Option(
        "--vision",
        envvar="TIDEGATE_VISION_ADDRESS",
        help="Address of the vision server. Default: that of `tidegate up`, or 127.0.0.1:8500.",
        show_default=False,
        metavar="HOST:PORT",
    ),
]
LlmOption = Annotated[
    str | None,
    typer.Option(
        "--llm",
        envvar="TIDEGATE_LLM_ADDRESS",
        help="Address of the LLM server. Default: that of `tidegate up`, or 127.0.0.1:8600.",
        show_default=False,
        metavar="HOST:PORT",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def results() -> "Console":
    """The console for results; in a pipe its lines are as long as they need to be."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=1000 if piped else None)


def errors() -> "Console":
    """The console for progress and problems."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Mapping[str, object]) -> None:
    """Writes one object as one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def readable(path: Path) -> str:
    """The text of a file that an option names.

    Raises:
        typer.BadParameter: it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}") from error
