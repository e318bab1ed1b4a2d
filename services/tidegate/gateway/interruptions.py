"""Requests that end early: their client leaves, or the gateway shuts down.

Neither FastAPI nor uvicorn ends a handler whose client has left, unless it streams. So a model
would go on computing an answer that nobody reads. `interruptible` ends a block in both cases, as
`asyncio.timeout` does when time is up, and with it the calls to the model: a cancelled call of gRPC
frees its place in the engine at once.

It ends them at gRPC's core, and leaves alone the task that awaits them: that one sees how the call
ends, and ends the block itself. Where the task is cancelled instead, gRPC's asyncio client loses up
to 1.3 KiB of memory for each call (grpc/grpc#43360). So the block's calls must be known: `ending`
tells them. A block that awaits no call is cancelled as usual.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from tidegate.errors import TidegateError
from tidegate.gateway.errors import ApiError, ErrorType

if TYPE_CHECKING:
    from grpc.aio import Call

__all__ = [
    "Cause",
    "ClientGoneError",
    "InFlight",
    "Interruption",
    "Receive",
    "ending",
    "interruptible",
    "shutdown_error",
]

Receive = Callable[[], Awaitable[Any]]

_SHUTDOWN_RETRY_S: Final = 1.0
# A block whose calls were ended takes far less; one that does not react at all is cancelled.
_ENDS_WITHIN_S: Final = 1.0


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


class Interruption:
    """The early end of a block; call it to end the block.

    Attributes:
        cause: Why the block ends early; None as long as it does not.
        is_sending: Whether the block waits for its client's socket, and for no call.
    """

    def __init__(self, owner: "asyncio.Task[object]") -> None:
        self.cause: Cause | None = None
        self.is_sending = False
        self._owner = owner
        self._calls: set[Call] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._cancelled_before = owner.cancelling()
        self._has_cancelled = False

    def __call__(self, cause: Cause) -> None:
        """Ends the block, unless it is about to end already."""
        if self.cause is not None:
            return
        self.cause = cause
        were_running = [_end(each) for each in self._calls]
        if self.is_sending or not any(were_running):
            self._cancel()
        else:
            self._timer = self._owner.get_loop().call_later(_ENDS_WITHIN_S, self._cancel)

    def add(self, call: "Call") -> None:
        """Adds a call to those that end with the block."""
        self._calls.add(call)
        if self.cause is not None:
            _end(call)

    def remove(self, call: "Call") -> None:
        """Removes a call."""
        self._calls.discard(call)

    def _cancel(self) -> None:
        self._has_cancelled = True
        self._owner.cancel()

    def is_cancellation(self) -> bool:
        """Tells whether a cancellation of the block is this one's alone, and takes it back."""
        left = self._owner.uncancel() if self._has_cancelled else self._owner.cancelling()
        self._has_cancelled = False
        return self.cause is not None and left <= self._cancelled_before

    async def close(self) -> None:
        """Takes back a cancellation that the block has not seen: it ended in the same turn."""
        if self._timer is not None:
            self._timer.cancel()
        if self._has_cancelled:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            if not self.is_cancellation():
                raise asyncio.CancelledError


_innermost: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


@asynccontextmanager
async def interruptible(receive: Receive, in_flight: InFlight) -> AsyncIterator[Interruption]:
    """Ends the block when the client leaves, or at the end of a drain.

    Enter it once the request's body has been read: it then is the only one that calls `receive`.

    Args:
        receive: The ASGI callable of the request.
        in_flight: The gateway's requests.

    Yields:
        What ends the block early.

    Raises:
        ClientGoneError: The client has left. Nobody reads a response any more.
        ApiError: The gateway shuts down, and the drain's time is up.
    """
    interruption = Interruption(cast("asyncio.Task[object]", asyncio.current_task()))

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        interruption(Cause.CLIENT_GONE)

    watcher = asyncio.create_task(watch(), name="disconnect-watch")
    in_flight.add(interruption)
    token = _innermost.set(interruption)
    try:
        yield interruption
    except asyncio.CancelledError as error:
        if interruption.is_cancellation():
            raise _error_of(cast("Cause", interruption.cause)) from error
        raise
    finally:
        _innermost.reset(token)
        in_flight.remove(interruption)
        watcher.cancel()
        await interruption.close()


@contextmanager
def ending(*calls: "Call") -> Iterator[None]:
    """Ends calls of gRPC with the `interruptible` block around, and at the end of this block.

    What awaits them then gets a `asyncio.CancelledError`.
    """
    interruption = _innermost.get()
    if interruption is not None:
        for each in calls:
            interruption.add(each)
    try:
        yield
    finally:
        for each in calls:
            _end(each)
            if interruption is not None:
                interruption.remove(each)


def _end(call: "Call") -> bool:
    """Cancels a call at gRPC's core; returns whether it was still running."""
    if call.done():
        return False
    core = getattr(call, "_cython_call", None)
    if core is None:
        call.cancel()
    else:
        core.cancel("the client of the request has left, or the gateway shuts down")
    return True


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
