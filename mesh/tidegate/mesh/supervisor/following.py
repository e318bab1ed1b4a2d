"""Commands that show what another program does, and are interrupted while it goes on.

Ctrl-C ends such a command and not what it follows. The command says so, because a person who
presses it often means to stop the change itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

__all__ = ["INTERRUPTED", "following"]

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT."""


@contextmanager
def following(goes_on: str) -> Iterator[None]:
    """Ends a command that is interrupted inside the context, with what goes on without it.

    Args:
        goes_on: what goes on, how to follow it, and how to stop it or take it back.
    """
    try:
        yield
    except KeyboardInterrupt:
        # A terminal shows ^C on the line where the cursor was.
        typer.echo(f"\ninterrupted: {goes_on}", err=True)
        raise typer.Exit(INTERRUPTED) from None
