"""Errors that end a program before it serves."""

from tidegate.errors import TidegateError

__all__ = ["StartupError"]


class StartupError(TidegateError):
    """The program cannot start as it is configured; the message names the field and the fix."""
