"""Counts a rollout's traffic by epoch: pure, in bounded memory.

A request counts in the epoch in which it started, also when it ends later. Requests that started
while a change of weights was on its way count in no epoch.

**Late knowledge.** A source hears late about a change: records of requests under new weights may
come before `begin_epoch` does, and the end of an epoch may lie in the past. So records without an
epoch wait for one, and what was counted since the last window is kept in slices of a second, which
a late end of the epoch drops.

**Maturity.** A slice goes into a window when its requests of all versions have ended, nearly: see
`tidegate.router.sources.maturity`. Of requests that end later, each counts when it ends.

**Users.** With a sticky rollout the unit is the user: see `tidegate.router.sources.users`. A user
counts by the request that started first of those of its period. Whatever request ends first, the
choice is made when all that started are mature. A restart of the router forgets who has counted.
A user with two versions in one epoch is a problem that is told: something keeps nobody.
"""

import enum
import math
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Final

import msgspec

from tidegate.evidence.window import TrafficWindow, VersionName
from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.rollout.spec.objectives import Signal
from tidegate.rollout.traffic import MatchKind
from tidegate.router.sources.counting import VersionCounts, merged
from tidegate.router.sources.exemplars import Exemplars
from tidegate.router.sources.maturity import Maturity
from tidegate.router.sources.pairing import Pair, Pairing
from tidegate.router.sources.request import FinishedRequest
from tidegate.router.sources.source import Epoch, Watched
from tidegate.router.sources.users import MAX_USERS, PERIOD_S, Places, Users

__all__ = ["KEPT_S", "LeftOut", "RolloutCounts"]

KEPT_S: Final = 3600.0
"""How long an epoch that has ended takes the counts of requests that end late."""

_MAX_EARLY: Final = 50_000
# How long a request that no version served is reported.
_UNSERVED_S: Final = 60.0


class LeftOut(enum.Enum):
    """Why a request counts nowhere."""

    TESTER = "requests of testers"
    HEADER_ROUTE = "requests of routes with conditions on headers"
    NO_USER = "requests without the header or cookie that names the user"
    TOO_MANY_USERS = "requests of users beyond those that are remembered"
    NO_COPY = "requests of which no mirrored copy was seen"
    NOT_SERVED = "requests that found no healthy server or no cluster"


class _Slice:
    """What was counted of requests that started in the same second, by version."""

    __slots__ = ("latest_s", "versions")

    def __init__(self) -> None:
        self.latest_s = 0.0
        self.versions: dict[str, VersionCounts] = {}


class _EpochCounts:
    """An epoch, and what was counted in it since the last window."""

    __slots__ = ("end_s", "epoch", "firsts", "mature_until", "slices", "window_start_s")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.end_s: float | None = None
        self.window_start_s = epoch.since_s
        # By the second in which requests started.
        self.slices: dict[int, _Slice] = {}
        # The first request of each version and user that may count, until it is mature.
        self.firsts: dict[tuple[str, str], FinishedRequest] = {}
        # The second before which requests are in windows, but for those that end late.
        self.mature_until = int(epoch.since_s)

    def has(self, start_s: float) -> bool:
        return start_s >= self.epoch.since_s and (self.end_s is None or start_s < self.end_s)

    def of(self, version: str, start_s: float, measures: Sequence[Measure]) -> VersionCounts:
        """The counts to which a request adds, by its version and start."""
        second = int(start_s)
        slice_ = self.slices.get(second)
        if slice_ is None:
            slice_ = self.slices[second] = _Slice()
        slice_.latest_s = max(slice_.latest_s, start_s)
        counts = slice_.versions.get(version)
        if counts is None:
            counts = slice_.versions[version] = VersionCounts(measures)
        return counts

    def end(self, at_s: float) -> None:
        if self.end_s is not None and self.end_s <= at_s:
            return
        self.end_s = at_s
        self.slices = {k: each for k, each in self.slices.items() if each.latest_s < at_s}
        self.firsts = {k: each for k, each in self.firsts.items() if each.start_s < at_s}

    def ended(self) -> dict[int, Counter[str]]:
        """The requests that are in no window, by second and version, without late ones."""
        found: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for second, slice_ in self.slices.items():
            for version, counts in slice_.versions.items():
                found[second][version] += counts.requests
        for first in self.firsts.values():
            found[int(first.start_s)][first.version] += 1
        return {second: each for second, each in found.items() if second >= self.mature_until}

    def take_mature(self) -> list[_Slice]:
        """Takes the slices that are to be in a window."""
        mature = [second for second in self.slices if second < self.mature_until]
        return [self.slices.pop(second) for second in mature]


class RolloutCounts:
    """The counts of one rollout.

    Args:
        watched: What to count.
        exemplars: Keeps some of the calls that count; None to keep none.

    Attributes:
        left_out: How many requests count nowhere, by the reason.
        exemplars: The same.
    """

    def __init__(self, watched: Watched, exemplars: Exemplars | None = None) -> None:
        self.exemplars = exemplars
        self.left_out: Counter[LeftOut] = Counter()
        self._watched = watched
        self._versions = frozenset((watched.baseline, *watched.candidates))
        self._measures = watched.measures
        self._has_gauges = any(each.kind is MeasureKind.GAUGE for each in watched.measures)
        self._pair_metrics = [
            each.metric for each in watched.measures if each.signal is Signal.ANSWER_DISAGREEMENT
        ]
        self._epochs: deque[_EpochCounts] = deque()
        self._early: deque[FinishedRequest] = deque()
        # How many had no room, and the start of the latest of them.
        self._early_dropped = 0
        self._early_dropped_s = 0.0
        self._pairing = Pairing()
        self._maturity = Maturity()
        self._missing = ""
        # The start of the last request that no version served.
        self._not_served_s = -math.inf
        self._now_s = 0.0
        self._users = Users()
        self._users_are_quiet = False
        self._places = Places()
        self._pairs = 0
        self._lost = 0
        self._has_counted = False
        # Whether something came since the last windows were taken.
        self._is_touched = False

    @property
    def watched(self) -> Watched:
        """What is counted."""
        return self._watched

    @property
    def has_gauges(self) -> bool:
        """Whether Prometheus has to be asked for some measures."""
        return self._has_gauges

    @property
    def has_news(self) -> bool:
        """Whether `take` may return a window, or change why requests do not count."""
        return (
            self._is_touched
            or self._lost > 0
            or len(self._pairing) > 0
            or any(each.slices or each.firsts for each in self._epochs)
        )

    @property
    def lasting(self) -> Epoch | None:
        """The epoch that lasts; None while the weights change."""
        latest = self._epochs[-1] if self._epochs else None
        return None if latest is None or latest.end_s is not None else latest.epoch

    @property
    def problem(self) -> str:
        """Says what keeps requests from counting; empty if nothing is known to."""
        problems = (
            self._problem_of_routes(),
            self._problem_of_unserved(),
            self._problem_of_ends(),
            self._problem_of_users(),
            self._problem_of_movers(),
            self._problem_of_copies(),
        )
        return "; ".join(filter(None, problems))

    def begin_change(self, at_s: float) -> None:
        """Ends the epoch; `at_s` may lie in the past."""
        self._is_touched = True
        if self._epochs:
            self._epochs[-1].end(at_s)

    def begin_epoch(self, epoch: Epoch) -> None:
        """Begins an epoch, with the requests that started in it and have ended already."""
        self.begin_change(epoch.requested_s)
        if self.exemplars is not None:
            self.exemplars.begin_epoch()
        self._epochs.append(_EpochCounts(epoch))
        self._places = Places()
        early, self._early = self._early, deque()
        for request in early:
            self._count(request)
        if self._early_dropped_s >= epoch.since_s:
            self.lose(self._early_dropped)
        self._early_dropped = 0

    def lose(self, count: int) -> None:
        """Notes requests whose records are lost."""
        self._lost += count

    def add(self, request: FinishedRequest) -> None:
        """Counts a request, or a mirrored copy of one."""
        self._is_touched = True
        if request.not_served and not request.version:
            self.left_out[LeftOut.NOT_SERVED] += 1
            self._not_served_s = max(self._not_served_s, request.start_s)
            return
        if request.version not in self._versions:
            return
        if request.is_copy and not self._watched.mirrored:
            return
        if request.is_testers:
            self.left_out[LeftOut.TESTER] += 1
            return
        if request.by_headers:
            self.left_out[LeftOut.HEADER_ROUTE] += 1
            return
        self._maturity.note(request)
        self._count(request)

    def take(self, now_s: float) -> tuple[TrafficWindow, ...]:
        """Returns a window for each epoch with mature traffic, the oldest first."""
        self._is_touched = False
        self._note_alone(now_s)
        self._now_s = now_s
        for each in self._epochs:
            mature = self._maturity.mature(each.ended(), each.epoch.shares, now_s)
            each.mature_until = max(each.mature_until, mature.until)
            self._missing = mature.missing
            self._admit_users(each, now_s)
        self._users.forget(now_s)
        self._users_are_quiet = self._users.are_quiet(now_s)
        taken = [(each, each.take_mature()) for each in self._epochs]
        windows = [self._window(each, slices, now_s) for each, slices in taken if slices]
        current = self._epochs[-1] if self._epochs else None
        if not windows and current is not None and self._lost:
            windows = [self._window(current, (), now_s)]
        if windows and self._lost:
            windows[-1] = msgspec.structs.replace(windows[-1], lost=self._lost)
            self._lost = 0
        while len(self._epochs) > 1 and self._is_over(self._epochs[0], now_s):
            self._epochs.popleft()
        return tuple(windows)

    def _count(self, request: FinishedRequest) -> None:
        counts = self._epoch_of(request)
        if counts is None:
            latest = self._epochs[-1] if self._epochs else None
            if latest is None or (latest.end_s is not None and request.start_s >= latest.end_s):
                self._keep_early(request)
            return
        if self._watched.mirrored:
            self._match(request)
        if self.exemplars is not None:
            self.exemplars.add(request)
        self._has_counted = True
        if self._watched.sticky is None:
            counts.of(request.version, request.start_s, self._measures).add(request)
        elif not request.user:
            self.left_out[LeftOut.NO_USER] += 1
        else:
            self._count_user(counts, request)

    def _keep_early(self, request: FinishedRequest) -> None:
        self._early.append(request)
        if len(self._early) > _MAX_EARLY:
            dropped = self._early.popleft()
            self._early_dropped += 1
            self._early_dropped_s = max(self._early_dropped_s, dropped.start_s)

    def _count_user(self, counts: _EpochCounts, request: FinishedRequest) -> None:
        key = (request.version, request.user)
        if counts is self._epochs[-1] and sum(map(bool, counts.epoch.shares.values())) > 1:
            self._places.note(request.version, request.user)
        if self._users.has_counted(*key, request.start_s):
            self._users.repeat()
            return
        first = counts.firsts.get(key)
        if first is not None:
            if request.start_s < first.start_s:
                counts.firsts[key] = request
        elif self._has_room_for_users:
            counts.firsts[key] = request
        else:
            self.left_out[LeftOut.TOO_MANY_USERS] += 1

    @property
    def _has_room_for_users(self) -> bool:
        return len(self._users) + sum(len(each.firsts) for each in self._epochs) < MAX_USERS

    def _admit_users(self, counts: _EpochCounts, now_s: float) -> None:
        mature = [k for k, each in counts.firsts.items() if each.start_s < counts.mature_until]
        for key in mature:
            request = counts.firsts.pop(key)
            if not self._users.has_counted(*key, request.start_s):
                self._users.count(*key, request.start_s, now_s)
                counts.of(request.version, request.start_s, self._measures).add(request)

    def _match(self, request: FinishedRequest) -> None:
        if request.is_copy:
            self._count_pair(self._pairing.add_copy(request))
        elif request.version == self._watched.baseline:
            for candidate in self._watched.candidates:
                self._count_pair(self._pairing.add_request(request, candidate))

    def _count_pair(self, pair: Pair | None) -> None:
        if pair is None:
            return
        self._pairs += 1
        if pair.differs is None:
            return
        counts = self._epoch_at(pair.start_s)
        if counts is None:
            return
        for metric in self._pair_metrics:
            for version, event in ((pair.baseline, False), (pair.candidate, pair.differs)):
                counts.of(version, pair.start_s, self._measures).add_trial(metric, event=event)

    def _note_alone(self, now_s: float) -> None:
        for request in self._pairing.expire(now_s):
            counts = self._epoch_of(request)
            shares = {} if counts is None else counts.epoch.shares
            mirrored = (shares.get(each) == 1 for each in self._watched.candidates)
            if shares.get(request.version) and any(mirrored):
                self.left_out[LeftOut.NO_COPY] += 1

    def _epoch_of(self, request: FinishedRequest) -> _EpochCounts | None:
        return self._epoch_at(request.start_s)

    def _epoch_at(self, start_s: float) -> _EpochCounts | None:
        for counts in reversed(self._epochs):
            if counts.has(start_s):
                return counts
            if start_s >= counts.epoch.since_s:
                return None
        return None

    def _window(
        self, counts: _EpochCounts, mature: Sequence[_Slice], now_s: float
    ) -> TrafficWindow:
        slices = [each.versions for each in mature]
        start_s = min(counts.window_start_s, now_s)
        traffic = {
            VersionName(name): merged(
                (each[name] for each in slices if name in each), self._measures
            ).traffic()
            for name in dict.fromkeys(name for each in slices for name in each)
        }
        counts.window_start_s = now_s
        return TrafficWindow(
            start_s=start_s,
            end_s=now_s,
            shares={VersionName(name): share for name, share in counts.epoch.shares.items()},
            versions=traffic,
            counted_until_s=max(counts.epoch.since_s, float(counts.mature_until)),
        )

    def _is_over(self, counts: _EpochCounts, now_s: float) -> bool:
        return counts.end_s is not None and now_s - counts.end_s > KEPT_S

    def _problem_of_routes(self) -> str:
        """Says that every request has another reason than the weights to be where it is."""
        reasons = (LeftOut.TESTER, LeftOut.HEADER_ROUTE)
        found = [f"{self.left_out[each]} {each.value}" for each in reasons if self.left_out[each]]
        if self._has_counted or not found:
            return ""
        return f"no request counts so far: only {' and '.join(found)} came"

    def _problem_of_unserved(self) -> str:
        if self._now_s - self._not_served_s > _UNSERVED_S:
            return ""
        return (
            f"{self.left_out[LeftOut.NOT_SERVED]} {LeftOut.NOT_SERVED.value}; the access log does "
            "not say which version they were for, so they count for none"
        )

    def _problem_of_ends(self) -> str:
        if not self._missing:
            return ""
        return (
            f"fewer requests to {self._missing} have ended than its share says: look for requests "
            "that do not end, or that something else than the weights divides. They count as "
            "missing from the split; their latency is not known before they end"
        )

    def _problem_of_users(self) -> str:
        sticky = self._watched.sticky
        if sticky is not None and self._users_are_quiet:
            return (
                "no new users: requests come, and for a minute none was by a user who may count; a "
                f"user counts once in {PERIOD_S / 60:g} minutes, so few users take long to judge by"
            )
        if self.left_out[LeftOut.TOO_MANY_USERS] and not self._has_room_for_users:
            return (
                f"the router remembers {MAX_USERS:,} users, and further ones do not count: "
                f"{self.left_out[LeftOut.TOO_MANY_USERS]} requests so far"
            )
        if sticky is None or not self.left_out[LeftOut.NO_USER] or self._users:
            return ""
        header, setting = sticky.name, "user_headers"
        if sticky.kind is MatchKind.COOKIE:
            header, setting = "cookie", "user_cookies"
        return (
            f"no request names its user by {sticky}; see that clients send it, and that the access "
            f"log has it: mesh.controller.{setting} lists it on a laptop, and "
            f"additionalRequestHeadersToLog of Istio's provider lists {header} on a cluster"
        )

    def _problem_of_movers(self) -> str:
        moved, users = len(self._places.moved), len(self._places)
        if not moved:
            return ""
        return (
            f"{moved} of {users} users had two versions under the present split: something on the "
            "way does not keep users on a version, such as a proxy in a namespace that the "
            "router's --sticky-namespaces does not have, or a client without a proxy"
        )

    def _problem_of_copies(self) -> str:
        without_copy = self.left_out[LeftOut.NO_COPY]
        if not without_copy:
            return ""
        return (
            f"{without_copy} requests had no mirrored copy, and {self._pairs} had one; see "
            "that the candidate has healthy endpoints and answers"
        )
