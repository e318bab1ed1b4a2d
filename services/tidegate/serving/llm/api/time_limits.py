"""Ends calls at their deadline, and calls of clients that stop reading."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tidegate.chassis.errors import DeadlineExceeded
from tidegate.serving.llm.telemetry import CancelCause

__all__ = ["CallTimeLimits", "StalledClientWatch"]


class StalledClientWatch:
    """Ends a call when one of its messages stays unread for too long. Close it with the call.

    A timer for each message would cost a good part of what building the message costs. So one timer
    runs for the whole call, and checks the current write when it fires.
    """

    __slots__ = ("_began_s", "_limit_s", "_loop", "_timeout", "_timer")

    def __init__(self, timeout: asyncio.Timeout, limit_s: float) -> None:
        """Starts the watch on the running event loop.

        Args:
            timeout: The entered timeout around the call; the watch lets it expire.
            limit_s: How long a message may stay unread.
        """
        self._timeout, self._limit_s = timeout, limit_s
        self._began_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit_s, self._check)

    def close(self) -> None:
        """Stops the watch."""
        self._timer.cancel()

    def writing(self) -> None:
        """Records that a write begins."""
        self._began_s = self._loop.time()

    def written(self) -> None:
        """Records that the write has ended."""
        self._began_s = None

    def _check(self) -> None:
        now_s = self._loop.time()
        due_s = (now_s if self._began_s is None else self._began_s) + self._limit_s
        if due_s > now_s:
            self._timer = self._loop.call_at(due_s, self._check)
        elif not self._timeout.expired():
            self._timeout.reschedule(now_s)


class CallTimeLimits:
    """The time limits of a call: its deadline, and the limit of the stalled-client watch.

    Args:
        deadline_s: Deadline of the call, in seconds of `time.monotonic`; None for none.
        limit_s: How long a client may leave a message unread.

    Attributes:
        timer: The timeout to enter around the call; the watch reschedules it to end the call.
    """

    def __init__(self, deadline_s: float | None, limit_s: float) -> None:
        self._deadline_s = deadline_s
        self._limit_s = limit_s
        self.timer = asyncio.timeout_at(deadline_s)

    @property
    def cause(self) -> CancelCause:
        """Which limit ended the call; read it after the timer has expired."""
        at_deadline = self.timer.when() == self._deadline_s
        return CancelCause.DEADLINE if at_deadline else CancelCause.STALLED

    @contextmanager
    def explaining_timeout(self) -> Iterator[None]:
        """Turns the timeout into an error that tells the client which limit ended the call."""
        try:
            yield
        except TimeoutError as error:
            if self.cause is CancelCause.DEADLINE:
                raise DeadlineExceeded("the deadline passed; the request was stopped") from error
            raise DeadlineExceeded(
                f"the client left a message unread for {self._limit_s:g} s",
                reason="CLIENT_DOES_NOT_READ",
            ) from error
