"""Finds a request and its mirrored copy, and compares their answers.

Both have the same id, and the record of either may come first. A request of which no copy comes was
not mirrored: Envoy gives up a copy whose body does not fit into the request's buffer.
"""

import itertools
from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.router.sources.request import FinishedRequest

__all__ = ["MAX_WAITING", "WAIT_S", "Pair", "Pairing"]

WAIT_S: Final = 120.0
"""How long a request waits for the end of its copy, and a copy for the end of its request."""

MAX_WAITING: Final = 100_000
"""Most requests and copies that wait."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A request and its copy.

    Attributes:
        start_s: When the request began.
        baseline: The version that answered the request.
        candidate: The version that answered the copy.
        differs: Whether the answers differ; None if they cannot be compared.
    """

    start_s: float
    baseline: str
    candidate: str
    differs: bool | None


class Pairing:
    """Requests and copies that wait for each other, in bounded memory."""

    def __init__(self) -> None:
        # By id and candidate, the oldest first.
        self._requests: dict[tuple[str, str], FinishedRequest] = {}
        self._copies: dict[tuple[str, str], FinishedRequest] = {}
        self._evicted: list[FinishedRequest] = []

    def __len__(self) -> int:
        return len(self._requests) + len(self._copies)

    def add_request(self, request: FinishedRequest, candidate: str) -> Pair | None:
        """Adds a request to the baseline; returns its pair if the copy came before.

        Args:
            request: The request.
            candidate: The version that may get a copy.
        """
        if not request.id:
            return None
        key = (request.id, candidate)
        copy = self._copies.pop(key, None)
        if copy is not None:
            return _pair(request, copy)
        self._requests[key] = request
        if len(self._requests) > MAX_WAITING:
            self._evicted.append(self._requests.pop(next(iter(self._requests))))
        return None

    def add_copy(self, copy: FinishedRequest) -> Pair | None:
        """Adds a copy; returns its pair if the request came before."""
        if not copy.id:
            return None
        key = (copy.id, copy.version)
        request = self._requests.pop(key, None)
        if request is not None:
            return _pair(request, copy)
        self._copies[key] = copy
        if len(self._copies) > MAX_WAITING:
            del self._copies[next(iter(self._copies))]
        return None

    def expire(self, now_s: float) -> list[FinishedRequest]:
        """Forgets what has waited too long; returns the requests without a copy."""
        alone, self._evicted = self._evicted, []
        for key in _ended(self._requests, now_s - WAIT_S):
            alone.append(self._requests.pop(key))
        for key in _ended(self._copies, now_s - WAIT_S):
            del self._copies[key]
        return alone


def _ended(
    waiting: Mapping[tuple[str, str], FinishedRequest], before_s: float
) -> list[tuple[str, str]]:
    """The keys of those that ended before a time. They came about in the order of their ends."""
    ended = itertools.takewhile(
        lambda item: item[1].start_s + item[1].duration_s < before_s, waiting.items()
    )
    return [key for key, _ in ended]


def _pair(request: FinishedRequest, copy: FinishedRequest) -> Pair:
    return Pair(
        start_s=request.start_s,
        baseline=request.version,
        candidate=copy.version,
        differs=_differs(request, copy),
    )


def _differs(request: FinishedRequest, copy: FinishedRequest) -> bool | None:
    if request.callers_reason or copy.code == "CANCELLED":
        return None
    if request.ok != copy.ok:
        return True
    if not request.ok:
        return None
    if request.label or copy.label:
        return request.label != copy.label
    answers = [(each.finish, each.tokens) for each in (request, copy)]
    return None if answers == [("", None)] * 2 else answers[0] != answers[1]
