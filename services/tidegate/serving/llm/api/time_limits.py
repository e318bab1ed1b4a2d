"""Notices that a client does not read."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tidegate.chassis.errors import DeadlineExceeded
from tidegate.serving.llm.telemetry import CancelCause

__all__ = ["CallTimeLimits", "StalledClientWatch"]


class StalledClientWatch:
    """Ends a call when one of its messages stays unread for too long; to be closed with the call.

    Setting a timer for each message would cost a good part of what making the message does. So one
    timer stands, and looks at what is being written when it fires.
    """

    __slots__ = ("_began_s", "_limit_s", "_loop", "_timeout", "_timer")

    def __init__(self, timeout: asyncio.Timeout, limit_s: float) -> None:
        """Begins to watch, in the event loop that runs.

        Args:
            timeout: Entered around the call; it expires when the limit has passed.
            limit_s: How long a message may stay unread.
        """
        self._timeout, self._limit_s = timeout, limit_s
        self._began_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit_s, self._look)

    def close(self) -> None:
        """Watches no more."""
        self._timer.cancel()

    def writing(self) -> None:
        """Tells that a message is about to be written."""
        self._began_s = self._loop.time()

    def written(self) -> None:
        """Tells that it has been taken."""
        self._began_s = None

    def _look(self) -> None:
        now_s = self._loop.time()
        due_s = (now_s if self._began_s is None else self._began_s) + self._limit_s
        if due_s > now_s:
            self._timer = self._loop.call_at(due_s, self._look)
        elif not self._timeout.expired():
            self._timeout.reschedule(now_s)


class CallTimeLimits:
    """What ends a call in time: its deadline, or the watch for a client that does not read.

    Args:
        deadline_s: Of the call, in seconds of `time.monotonic`; None for none.
        limit_s: How long a client may leave a message unread.

    Attributes:
        timer: Around the call; the watch reschedules it to end the call.
    """

    def __init__(self, deadline_s: float | None, limit_s: float) -> None:
        self._deadline_s = deadline_s
        self._limit_s = limit_s
        self.timer = asyncio.timeout_at(deadline_s)

    @property
    def cause(self) -> CancelCause:
        """Why it ended the call, once it has."""
        at_deadline = self.timer.when() == self._deadline_s
        return CancelCause.DEADLINE if at_deadline else CancelCause.STALLED

    @contextmanager
    def explaining_timeout(self) -> Iterator[None]:
        """Tells the client why it ended the call."""
        try:
            yield
        except TimeoutError as error:
            if self.cause is CancelCause.DEADLINE:
                words = "the deadline passed; what ran for it was stopped"
                raise DeadlineExceeded(words) from error
            raise DeadlineExceeded(
                f"the client left a message unread for {self._limit_s:g} s",
                reason="CLIENT_DOES_NOT_READ",
            ) from error
