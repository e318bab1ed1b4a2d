"""The calls in flight: a drain waits for them, holds them and, at its deadline, cancels them."""

import asyncio
from collections import Counter
from collections.abc import Callable

__all__ = ["InFlightCall", "InFlightCalls"]


class InFlightCall:
    """One call that the server is answering.

    Attributes:
        path: ``/service/method``, or ``other`` for a method that does not exist.
        is_application: False for the built-in services (health, reflection and channelz), which
            no drain waits for.
        task: Task that answers the call.
        is_cancelled_by_drain: Whether the drain has cancelled the call, not its client.
    """

    __slots__ = ("is_application", "is_cancelled_by_drain", "path", "task")

    def __init__(self, path: str, *, is_application: bool, task: "asyncio.Task[object]") -> None:
        self.path = path
        self.is_application = is_application
        self.task = task
        self.is_cancelled_by_drain = False


class InFlightCalls:
    """All calls that one server is answering.

    Attributes:
        held: Event that calls await before they begin and before they end; None while calls are
            not held.
        is_refusing_built_in: Whether the server refuses new calls of its built-in services.
    """

    def __init__(self) -> None:
        self.held: asyncio.Event | None = None
        self.is_refusing_built_in = False
        self._calls: set[InFlightCall] = set()
        self._application_calls = 0

    @property
    def application_calls(self) -> int:
        """How many calls of the application's own services run."""
        return self._application_calls

    def begin(self, call: InFlightCall) -> None:
        """Adds a call."""
        self._calls.add(call)
        self._application_calls += call.is_application

    def end(self, call: InFlightCall) -> None:
        """Removes a call."""
        self._calls.discard(call)
        self._application_calls -= call.is_application

    def hold(self) -> None:
        """Makes calls wait before they begin and before they end, until `release`."""
        self.held = self.held or asyncio.Event()

    def release(self) -> None:
        """Lets held calls go on."""
        held, self.held = self.held, None
        if held is not None:
            held.set()

    def refuse_built_in(self) -> None:
        """Cancels the calls of the built-in services, and refuses new ones from now on.

        A health watch never ends by itself.
        """
        self.is_refusing_built_in = True
        self._cancel(lambda call: not call.is_application)

    def cancel_all(self) -> Counter[str]:
        """Cancels every call; their clients receive UNAVAILABLE.

        Returns:
            Number of cancelled calls, by path.
        """
        return self._cancel(lambda _: True)

    def _cancel(self, which: Callable[[InFlightCall], bool]) -> Counter[str]:
        chosen = [call for call in self._calls if which(call)]
        for call in chosen:
            call.is_cancelled_by_drain = True
            call.task.cancel()
        return Counter(call.path for call in chosen)
