"""The epochs of one rollout: tells the source of evidence what to count and when weights change.

An epoch is a time of unchanged weights. It begins when a split comes into force, and ends when the
rollout begins to change it, or when the traffic turns out to be another: somebody else has changed
it, or a change failed. Then it ends with the last look at which the traffic was as expected, and
what came after counts in no epoch.
"""

import msgspec

from tidegate.evidence.window import TrafficWindow
from tidegate.rollout.engine.stages import sticky_of
from tidegate.rollout.measures import measures_of
from tidegate.rollout.spec.model import RolloutSpec
from tidegate.rollout.traffic import Applied, HostTraffic, TrafficSplit
from tidegate.router.sources.source import (
    Epoch,
    Exemplar,
    TrafficSource,
    UnsupportedError,
    Watched,
)

__all__ = ["EpochTracker", "Resumed", "shares_of", "watched_of"]


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """An epoch in which another process counted before.

    Attributes:
        split: The split of the epoch.
        since_s: Before when the requests are counted, in seconds since the epoch.
        requests_per_s: The host's requests per second.
    """

    split: TrafficSplit
    since_s: float
    requests_per_s: float = 0.0


class EpochTracker:
    """The epochs of one rollout, from the first look at its traffic to its end.

    Args:
        source: Counts.
        key: The rollout's.
        spec: What the rollout does.
        host: The host's full name.
        prometheus_url: The Prometheus to ask if the spec names none.
        resumed: The epoch that another process left. It goes on if the first look finds the same
            split and the source has what ended meanwhile.
    """

    def __init__(
        self,
        source: TrafficSource,
        key: str,
        spec: RolloutSpec,
        host: str,
        prometheus_url: str = "",
        resumed: Resumed | None = None,
    ) -> None:
        self._source = source
        self._key = key
        self._epoch: TrafficSplit | None = None
        self._changing = False
        self._changed_s = 0.0
        self._seen_s = 0.0
        self._unsupported = ""
        if resumed is not None and not source.resume(host, resumed.since_s, resumed.requests_per_s):
            resumed = None
        self._resumed = resumed
        try:
            source.watch(key, watched_of(spec, host, prometheus_url))
        except UnsupportedError as error:
            # The rollout goes on without evidence, so that it can be aborted at least.
            self._unsupported = str(error)
        self._is_watching = not self._unsupported

    @property
    def problem(self) -> str:
        """Why evidence is missing; empty if nothing is known to be missing."""
        return self._unsupported or self._source.problem(self._key)

    @property
    def is_settled(self) -> bool:
        """Whether another look at the same traffic would change nothing."""
        return not self._changing and self._epoch is not None and self._seen_s >= self._changed_s

    @property
    def has_news(self) -> bool:
        """Whether there may be something to take, or evidence is missing."""
        return bool(self._unsupported) or (self._is_watching and self._source.has_news(self._key))

    def saw_the_same(self, now_s: float) -> None:
        """Notes that the traffic is what the last look found."""
        if self.is_settled:
            self._seen_s = max(self._seen_s, now_s)

    def look(self, traffic: HostTraffic, began_s: float, now_s: float) -> None:
        """Ends the epoch if the traffic is another, and begins one of what it is.

        Args:
            traffic: The traffic.
            began_s: When the reading of it began.
            now_s: The time.
        """
        if self._changing or began_s <= self._changed_s:
            # The reading may be of before the rollout's own change.
            return
        if self._epoch is not None and (traffic.problem or not self._epoch.same_as(traffic.split)):
            self._end(self._seen_s)
        if traffic.problem:
            return
        resumed, self._resumed = self._resumed, None
        if resumed is not None and resumed.split.same_as(traffic.split):
            self._begin(traffic.split, requested_s=resumed.since_s, since_s=resumed.since_s)
        elif self._epoch is None:
            requested_s = self._seen_s or began_s
            self._begin(traffic.split, requested_s=requested_s, since_s=now_s)
        self._seen_s = began_s

    def change_begins(self, now_s: float) -> None:
        """Ends the epoch: the rollout is about to change the weights."""
        self._changing = True
        self._resumed = None
        self._changed_s = self._seen_s = now_s
        self._end(now_s)

    def change_ended(self, split: TrafficSplit, applied: Applied) -> None:
        """Begins the epoch of a split that is in force."""
        self._changing = False
        self._changed_s = self._seen_s = applied.since_s
        self._begin(split, requested_s=applied.requested_s, since_s=applied.since_s)

    def change_failed(self, now_s: float) -> None:
        """Lets the next look say what the traffic is."""
        self._changing = False
        self._changed_s = now_s

    @property
    def exemplars(self) -> tuple[Exemplar, ...]:
        """Some traced calls that stand for what was counted."""
        return self._source.exemplars(self._key) if self._is_watching else ()

    async def take(self, now_s: float) -> tuple[TrafficWindow, ...]:
        """Returns what was counted since the last call."""
        return await self._source.take(self._key, now_s) if self._is_watching else ()

    def end(self) -> None:
        """Counts no longer. A change that still runs may say later that it has ended."""
        if self._is_watching:
            self._source.forget(self._key)
            self._is_watching = False

    def _begin(self, split: TrafficSplit, *, requested_s: float, since_s: float) -> None:
        self._epoch = split
        epoch = Epoch(shares=shares_of(split), requested_s=requested_s, since_s=since_s)
        if self._is_watching:
            self._source.begin_epoch(self._key, epoch)

    def _end(self, at_s: float) -> None:
        self._epoch = None
        if self._is_watching:
            self._source.begin_change(self._key, at_s)


def shares_of(split: TrafficSplit) -> dict[str, float]:
    """Returns the shares of the versions from 0 to 1; of a mirrored version that of its copies."""
    shares = split.mirrors | {name: weight for name, weight in split.weights.items() if weight}
    return {name: percent / 100 for name, percent in shares.items()}


def watched_of(spec: RolloutSpec, host: str, prometheus_url: str) -> Watched:
    """Returns what a source counts for a rollout.

    Args:
        spec: What the rollout does.
        host: The host's full name.
        prometheus_url: The Prometheus to ask if the spec names none.
    """
    return Watched(
        host=host,
        baseline=spec.baseline,
        candidates=spec.candidate_names,
        measures=measures_of(spec),
        sticky=sticky_of(spec),
        mirrored=_is_mirrored(spec),
        url=spec.evidence.url or prometheus_url,
    )


def _is_mirrored(spec: RolloutSpec) -> bool:
    blue_green = spec.strategy.blue_green
    return spec.strategy.shadow is not None or (blue_green is not None and bool(blue_green.mirror))
