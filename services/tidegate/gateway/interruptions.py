"""Requests that end early: their client leaves, or the gateway shuts down.

Neither FastAPI nor uvicorn ends a handler whose client has left, unless it streams. So a model
would go on computing an answer that nobody reads. `interruptible` ends a block in both cases, as
`asyncio.timeout` does when time is up, and what the block awaits is cancelled: a cancelled call of
gRPC frees its place in the engine at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, cast

from tidegate.errors import TidegateError
from tidegate.gateway.errors import ApiError, ErrorType

__all__ = ["Cause", "ClientGoneError", "InFlight", "Receive", "interruptible", "shutdown_error"]

Receive = Callable[[], Awaitable[Any]]

_SHUTDOWN_RETRY_S: Final = 1.0


class ClientGoneError(TidegateError):
    """The client closed its connection before the answer was complete."""


class Cause(Enum):
    """Why a request ends early."""

    CLIENT_GONE = "client gone"
    SHUTDOWN = "shutdown"


class InFlight:
    """The requests that the gateway is answering, so that the end of a drain can end them.

    Attributes:
        draining: Whether the gateway is shutting down; responses then close their connections.
    """

    def __init__(self) -> None:
        self.draining = False
        self._interrupts: set[Callable[[Cause], None]] = set()

    def __len__(self) -> int:
        return len(self._interrupts)

    def interrupt_all(self) -> int:
        """Ends all requests with an error that says so; returns how many there were."""
        interrupts = list(self._interrupts)
        for interrupt in interrupts:
            interrupt(Cause.SHUTDOWN)
        return len(interrupts)

    def add(self, interrupt: Callable[[Cause], None]) -> None:
        """Adds a request."""
        self._interrupts.add(interrupt)

    def remove(self, interrupt: Callable[[Cause], None]) -> None:
        """Removes a request."""
        self._interrupts.discard(interrupt)


@asynccontextmanager
async def interruptible(
    receive: Receive, in_flight: InFlight
) -> AsyncIterator[Callable[[Cause], None]]:
    """Cancels the block when the client leaves, or at the end of a drain.

    Enter it once the request's body has been read: it then is the only one that calls `receive`.

    Args:
        receive: The ASGI callable of the request.
        in_flight: The gateway's requests.

    Yields:
        A function that ends the block early.

    Raises:
        ClientGoneError: The client has left. Nobody reads a response any more.
        ApiError: The gateway shuts down, and the drain's time is up.
    """
    owner = cast("asyncio.Task[object]", asyncio.current_task())
    cause: Cause | None = None

    def interrupt(why: Cause) -> None:
        nonlocal cause
        if cause is None:
            cause = why
            owner.cancel()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        interrupt(Cause.CLIENT_GONE)

    cancelled_before = owner.cancelling()
    watcher = asyncio.create_task(watch(), name="disconnect-watch")
    in_flight.add(interrupt)
    was_cancelled = False
    try:
        yield interrupt
    except asyncio.CancelledError as error:
        was_cancelled = True
        if cause is not None and owner.uncancel() <= cancelled_before:
            raise _error_of(cause) from error
        raise
    finally:
        in_flight.remove(interrupt)
        watcher.cancel()
        if cause is not None and not was_cancelled:
            # The block ended in the same turn of the loop; its next wait would be cancelled.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            if owner.uncancel() > cancelled_before:
                raise asyncio.CancelledError


def _error_of(cause: Cause) -> TidegateError:
    if cause is Cause.CLIENT_GONE:
        return ClientGoneError("the client has left")
    return shutdown_error()


def shutdown_error() -> ApiError:
    """Makes the error of requests that the end of a drain ends."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the gateway is shutting down; ask again, another one answers",
        ErrorType.SERVER,
        "shutting_down",
        retry_after_s=_SHUTDOWN_RETRY_S,
    )
