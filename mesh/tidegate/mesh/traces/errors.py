"""Errors of the trace store and its clients. Each message says what to do."""

from tidegate.errors import TidegateError

__all__ = [
    "BadQueryError",
    "StoreBusyError",
    "StoreError",
    "TraceNotFoundError",
    "TracesError",
    "TracesUnreachableError",
]


class TracesError(TidegateError):
    """Traces cannot be kept, served or shown."""


class StoreError(TracesError):
    """The trace file cannot be opened, read or written."""


class StoreBusyError(TracesError):
    """The queue of the store is full; try again."""


class BadQueryError(TracesError):
    """A query has a parameter that is missing or malformed; the message names it."""


class TraceNotFoundError(TracesError):
    """There is no such trace, or several traces share the beginning of the id."""


class TracesUnreachableError(TracesError):
    """No query API answers at the address."""

    unreachable = True
    advice = "Start the controller with `tidegate up`, or give the URL of a Jaeger with --url."
