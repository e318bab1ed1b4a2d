"""The calls that are being answered: what a drain waits for, holds and, at its deadline, cuts."""

import asyncio
from collections import Counter
from collections.abc import Callable

__all__ = ["Call", "InFlight"]


class Call:
    """One call while it is answered.

    Attributes:
        path: ``/service/method``, or ``other`` for a method that does not exist.
        is_application: False for health, reflection and channelz, which no drain waits for.
        task: The task that answers it.
        is_cut: Set when the drain has cancelled it, to tell that from a client that left.
    """

    __slots__ = ("is_application", "is_cut", "path", "task")

    def __init__(self, path: str, *, is_application: bool, task: "asyncio.Task[object]") -> None:
        self.path = path
        self.is_application = is_application
        self.task = task
        self.is_cut = False


class InFlight:
    """All calls of one server that are being answered.

    Attributes:
        held: What calls wait for before they begin and before they end; None when they need not.
        is_closing: Whether calls that are not the application's are refused.
    """

    def __init__(self) -> None:
        self.held: asyncio.Event | None = None
        self.is_closing = False
        self._calls: set[Call] = set()
        self._application_calls = 0

    @property
    def application_calls(self) -> int:
        """How many calls of the application's own services run."""
        return self._application_calls

    def begin(self, call: Call) -> None:
        """Takes a call in."""
        self._calls.add(call)
        self._application_calls += call.is_application

    def end(self, call: Call) -> None:
        """Lets a call go."""
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

    def close_own(self) -> None:
        """Cuts and refuses from now on the calls that are not the application's.

        A health watch never ends by itself.
        """
        self.is_closing = True
        self._cut(lambda call: not call.is_application)

    def cut_all(self) -> Counter[str]:
        """Cancels every call; their clients are told UNAVAILABLE.

        Returns:
            How many were cut, by path.
        """
        return self._cut(lambda _: True)

    def _cut(self, which: Callable[[Call], bool]) -> Counter[str]:
        chosen = [call for call in self._calls if which(call)]
        for call in chosen:
            call.is_cut = True
            call.task.cancel()
        return Counter(call.path for call in chosen)
