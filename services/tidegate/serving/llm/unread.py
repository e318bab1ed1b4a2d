"""Notices that a client does not read."""

import asyncio

__all__ = ["UnreadWatch"]


class UnreadWatch:
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
