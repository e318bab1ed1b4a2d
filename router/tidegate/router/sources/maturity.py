"""When the requests that started in a second are complete enough to compare versions: pure.

A request is known when it ends. If versions were compared by what has ended, a version of 30 s
would for its first 30 s consist of the requests that failed at once, beside a version of 20 s whose
answers are there. So a second's requests wait until nearly all of them have ended, of every
version. How long that takes is learned from the requests that have ended:

- A version needs 1.25 times the time in which 99 % of its recent requests ended. Calls that failed
  within a second are left out: they do not tell how long an answer takes. The factor lets the time
  grow while longer requests are still to end.
- A version without answers is unknown. It is complete only if about as many of its requests have
  ended as its share of the traffic says: then it fails fast. With fewer, its answers are under way.
- A version that was known may have become slower. So of such a version too, about as many requests
  as its share says must have ended, but for chance.

A version that does not end its requests must be found. So nothing waits longer than ten times what
the fastest version needs, from 10 s to a minute. What has ended then counts, and what has not is
missing from the split. Requests that end later count when they end.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.evidence.buckets import BUCKETS, bucket_of, upper_edge
from tidegate.router.sources.request import FinishedRequest

__all__ = ["GRACE_S", "LONGEST_WAIT_S", "SHORTEST_PATIENCE_S", "Mature", "Maturity"]

GRACE_S: Final = 0.25
"""How long records of requests may take from the proxy to here."""

LONGEST_WAIT_S: Final = 60.0
"""How long a second waits at most."""

SHORTEST_PATIENCE_S: Final = 10.0
"""How long a version that lacks requests is waited for at least."""

_PATIENCE: Final = 10.0
_GROWTH: Final = 1.25
_TAIL: Final = 0.01
_FAST_FAILURE_S: Final = 1.0
_HALVED_AFTER_S: Final = 60.0
_FORGOTTEN: Final = 0.05
_MOST_HALVINGS: Final = 64
# An unknown version fails fast if half of at least so many expected requests have ended.
_LEAST_EXPECTED: Final = 8.0
_FAILED_FAST: Final = 0.5
# A known version is complete with this part of its share, less two standard deviations.
_COMPLETE: Final = 0.8


class Mature(msgspec.Struct, frozen=True):
    """Which requests can be compared.

    Attributes:
        until: The second before which requests must have started.
        missing: The version of which requests that have waited too long are missing; else empty.
    """

    until: int
    missing: str = ""


class _Durations:
    """How long the recent requests of a version took."""

    __slots__ = ("answers", "buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0.0] * BUCKETS
        self.total = self.answers = 0.0

    def add(self, request: FinishedRequest) -> None:
        if not request.ok and request.duration_s < _FAST_FAILURE_S:
            return
        self.buckets[bucket_of(request.duration_s)] += 1.0
        self.total += 1.0
        self.answers += request.ok

    def halve(self, times: int) -> None:
        part = 0.5**times
        self.buckets = [each * part for each in self.buckets]
        self.total *= part
        self.answers = self.answers * part if 2 * self.answers * part > _FORGOTTEN else 0.0

    def needed_s(self) -> float:
        """How long a request needs to end; 0 if no request has said so."""
        above = 0.0
        for bucket in range(BUCKETS - 1, -1, -1):
            above += self.buckets[bucket]
            if above > _TAIL * self.total:
                return min(_GROWTH * upper_edge(bucket), LONGEST_WAIT_S)
        return 0.0


class Maturity:
    """Learns how long requests take, and says which of them can be compared."""

    def __init__(self) -> None:
        self._durations: dict[str, _Durations] = {}
        self._halved_s = -math.inf

    def note(self, request: FinishedRequest) -> None:
        """Notes how long a request took."""
        durations = self._durations.get(request.version)
        if durations is None:
            durations = self._durations[request.version] = _Durations()
        durations.add(request)

    def mature(
        self, ended: Mapping[int, Mapping[str, int]], shares: Mapping[str, float], now_s: float
    ) -> Mature:
        """Says which requests of an epoch can be compared.

        Args:
            ended: How many requests have ended that nobody has compared yet, by the second in which
                they started and the version.
            shares: The intended shares of the versions.
            now_s: The time.
        """
        self._forget(now_s)
        shares = {name: share for name, share in shares.items() if share > 0.0}
        if len(shares) < 2:
            return Mature(math.floor(now_s - GRACE_S))
        needed = {name: self._needed_s(name) for name in shares}
        known = [each for each in needed.values() if each is not None]
        ready = math.floor(now_s - GRACE_S - max(known, default=0.0))
        patience_s = LONGEST_WAIT_S
        if known:
            patience_s = min(max(_PATIENCE * min(known), SHORTEST_PATIENCE_S), LONGEST_WAIT_S)
        given_up = math.floor(now_s - GRACE_S - patience_s)
        if not known:
            # Nobody knows yet how long an answer takes.
            return Mature(given_up)
        if ready <= given_up:
            return Mature(ready)
        counts = {
            name: sum(each.get(name, 0) for second, each in ended.items() if second < ready)
            for name in shares
        }
        for name, each in needed.items():
            if not _is_complete(counts, shares, name, is_known=each is not None):
                overdue = any(second < given_up for second in ended)
                is_few = _expected(counts, shares, name) >= _LEAST_EXPECTED
                return Mature(given_up, name if overdue and is_few else "")
        return Mature(ready)

    def _needed_s(self, version: str) -> float | None:
        durations = self._durations.get(version)
        if durations is None or not durations.answers:
            return None
        return durations.needed_s()

    def _forget(self, now_s: float) -> None:
        if now_s < self._halved_s + _HALVED_AFTER_S:
            return
        if self._halved_s > -math.inf:
            # Nobody asks while no requests come.
            times = min(int((now_s - self._halved_s) // _HALVED_AFTER_S), _MOST_HALVINGS)
            for each in self._durations.values():
                each.halve(times)
        self._halved_s = now_s


def _is_complete(
    counts: Mapping[str, int], shares: Mapping[str, float], name: str, *, is_known: bool
) -> bool:
    """Whether about as many requests of a version have ended as its share says."""
    expected = _expected(counts, shares, name)
    if is_known:
        others = 1.0 - shares[name] / sum(shares.values())
        chance = 2.0 * math.sqrt(expected * others)
        return counts[name] >= _COMPLETE * expected - chance
    return expected >= _LEAST_EXPECTED and counts[name] >= _FAILED_FAST * expected


def _expected(counts: Mapping[str, int], shares: Mapping[str, float], name: str) -> float:
    return sum(counts.values()) * shares[name] / sum(shares.values())
