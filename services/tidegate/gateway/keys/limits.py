"""Limits per minute: how many requests and tokens a key may use.

Each limit is a token bucket: it holds a minute's worth, and refills at an even rate. A request
takes what it may use at most when it is admitted, and gives back what it did not use at its end. If
it used more, the bucket goes below zero, and the next requests wait longer.

The headers are OpenAI's, also in how they write times: ``x-ratelimit-reset-*`` is the time until
the bucket is full again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tidegate.gateway.errors import ApiError, ErrorType

__all__ = ["Budget", "Limits"]

_MINUTE_S: Final = 60.0
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Budget:
    """A token bucket that holds a minute's worth.

    Args:
        per_minute: How much it holds, and refills a minute.
        clock: Gives the time in seconds, such as `time.monotonic`.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / _MINUTE_S
        self._clock = clock
        self._level = float(per_minute)
        self._at_s = clock()

    @property
    def level(self) -> float:
        """How much is left now; below zero after a request that used more than it had taken."""
        now_s = self._clock()
        refilled = self._level + (now_s - self._at_s) * self._rate
        self._level, self._at_s = min(refilled, float(self.per_minute)), now_s
        return self._level

    def wait_s(self, amount: int) -> float:
        """Returns how long to wait until it has an amount; 0 if it has."""
        return max(0.0, (amount - self.level) / self._rate)

    def take(self, amount: int) -> None:
        """Takes an amount; a negative one gives back."""
        self._level = min(self.level - amount, float(self.per_minute))

    def headers(self, of: str) -> dict[str, str]:
        """Describes it in headers; `of` is ``requests`` or ``tokens``."""
        level = self.level
        return {
            f"x-ratelimit-limit-{of}": str(self.per_minute),
            f"x-ratelimit-remaining-{of}": str(max(0, math.floor(level))),
            f"x-ratelimit-reset-{of}": _written((self.per_minute - level) / self._rate),
        }


@dataclass(slots=True)
class _TokensTaken:
    """What a request took."""

    headers: Mapping[str, str]
    _budget: Budget | None
    _tokens: int

    def settle(self, used: int) -> None:
        """Gives back what the request did not use; counts once."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.take(used - self._tokens)


class Limits:
    """The limits of one key.

    Args:
        requests: Its budget of requests; None for no limit.
        tokens: Its budget of tokens; None for no limit.
    """

    def __init__(self, requests: Budget | None, tokens: Budget | None) -> None:
        self.requests = requests
        self.tokens = tokens

    @property
    def headers(self) -> Mapping[str, str]:
        """The ``x-ratelimit-*`` headers now."""
        if self.requests is None and self.tokens is None:
            return _NO_HEADERS
        return {
            **(self.requests.headers("requests") if self.requests else {}),
            **(self.tokens.headers("tokens") if self.tokens else {}),
        }

    def reserve(self, tokens: int) -> _TokensTaken:
        """Takes one request and its tokens.

        Raises:
            ApiError: A limit is reached. The request then took nothing.
        """
        if self.tokens is not None and tokens > self.tokens.per_minute:
            raise ApiError(
                429,
                f"the request may use {tokens} tokens, and this API key has"
                f" {self.tokens.per_minute} a minute; ask for fewer",
                ErrorType.RATE_LIMIT,
                "request_too_large",
                may_retry=False,
                headers=self.headers,
            )
        self._check(self.requests, 1, "requests")
        if tokens:
            self._check(self.tokens, tokens, "tokens")
        if self.requests is not None:
            self.requests.take(1)
        if self.tokens is not None:
            self.tokens.take(tokens)
        return _TokensTaken(self.headers, self.tokens, tokens)

    def _check(self, budget: Budget | None, amount: int, of: str) -> None:
        if budget is not None and (wait_s := budget.wait_s(amount)):
            raise ApiError(
                429,
                f"this API key has {budget.per_minute} {of} a minute, and they are used up;"
                f" try again in {_written(wait_s)}",
                ErrorType.RATE_LIMIT,
                "rate_limit_exceeded",
                retry_after_s=wait_s,
                headers=self.headers,
            )


def _written(seconds: float) -> str:
    """Writes a time as OpenAI does: ``250ms``, ``1.5s``, ``2m0s``; rounded up."""
    milliseconds = math.ceil(max(0.0, seconds) * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
