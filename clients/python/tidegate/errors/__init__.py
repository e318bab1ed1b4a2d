"""The root of every exception that Tidegate raises, so that one ``except`` catches them all."""

__all__ = ["TidegateError"]


class TidegateError(Exception):
    """Something in Tidegate failed; the message says what, where, and what to do about it."""
