"""What goes wrong with traces; each message says what to do."""

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
    """The file of traces cannot be opened, read or written."""


class StoreBusyError(TracesError):
    """More waits for the store than it holds; try again."""


class BadQueryError(TracesError):
    """A query says something that cannot be understood; the message names the parameter."""


class TraceNotFoundError(TracesError):
    """There is no such trace, or there are several whose id begins so."""


class TracesUnreachableError(TracesError):
    """No query API answers at the address."""

    unreachable = True
    advice = "Start the controller with `tidegate up`, or say with --url where a Jaeger is."
