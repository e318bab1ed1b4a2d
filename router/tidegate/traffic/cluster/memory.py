"""What this process knows of one rollout's traffic beside what the objects say.

Nothing here has to survive a restart. A process that knows nothing waits once more for subsets to
settle and for the split in force to show itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tidegate.istio.editing.sticky_routes import STICKY_REVISIONS, following_sticky_revision
from tidegate.kube.resources import Manifest
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import Knowledge, TrafficSplit
from tidegate.traffic.cluster.reading import HostView

__all__ = ["InForce", "RolloutMemory"]


@dataclass(frozen=True, slots=True)
class InForce:
    """A split in force.

    Attributes:
        split: The split.
        owner: The rollout that owns it; empty if none does.
        known: How it is known that it is in force.
    """

    split: TrafficSplit
    owner: str
    known: Knowledge


@dataclass(slots=True)
class RolloutMemory:
    """What is known of one rollout's traffic.

    Attributes:
        uid: The VirtualService that carries the rollout's split; empty if none does.
        version: The resource version of the last write, which reads must have seen.
        in_force: The last split in force; None if it is not known.
        view: The last view that was read, and the rollout that it was read for.
        filter_versions: By namespace, the resource version of the last write of an EnvoyFilter,
            which reads must have seen.
        changes: `ClusterObjects.changes` before the last reading; None if the next one may differ.
    """

    uid: str = ""
    version: str = ""
    in_force: InForce | None = None
    view: tuple[Rollout, HostView] | None = None
    filter_versions: dict[str, str] = field(default_factory=dict)
    changes: int | None = None
    _subsets: dict[tuple[str, str], float] = field(default_factory=dict)
    _filters: dict[tuple[str, int], float] = field(default_factory=dict)
    _revision: int = 0
    _sticky_revision: str = ""

    def note_written(self, item: Manifest) -> None:
        """Notes a VirtualService that was written."""
        self.uid = item.metadata.uid
        self.version = item.metadata.resource_version

    def note_filters_written(self, items: Iterable[Manifest]) -> None:
        """Notes EnvoyFilters that were written."""
        for each in items:
            self.filter_versions[each.metadata.namespace] = each.metadata.resource_version

    def note_filters(self, items: Iterable[Manifest | None], now_s: float) -> None:
        """Notes when each EnvoyFilter was first seen as it is.

        Args:
            items: The EnvoyFilters; None for one that is not there.
            now_s: The time, in seconds since the epoch.
        """
        self._filters = {
            key: min(self._filters.get(key, _first_s(each, now_s)), now_s)
            for each in items
            if each is not None
            for key in [(each.metadata.uid, each.metadata.generation)]
        }

    def filters_to_settle(self, settle_s: float, now_s: float) -> float:
        """Returns for how long EnvoyFilters have not been there long enough; 0 if all have.

        Args:
            settle_s: How long they must have been there.
            now_s: The time, in seconds since the epoch.
        """
        seen = self._filters.values()
        return max(0.0, max(seen) + settle_s - now_s) if seen else 0.0

    def note_subsets(self, rules: Iterable[Manifest], now_s: float) -> None:
        """Notes when each subset was first seen.

        A subset of a rule that has not changed since it was made is as old as the rule. None is
        younger than now: the clock may have been set back.

        Args:
            rules: The DestinationRules of the host.
            now_s: The time, in seconds since the epoch.
        """
        found: dict[tuple[str, str], float] = {}
        for rule in rules:
            first_s = _first_s(rule, now_s)
            for each in rule.spec.get("subsets") or ():
                key = (rule.metadata.uid, str(each.get("name")))
                found[key] = min(self._subsets.get(key, first_s), now_s)
        self._subsets = found

    def seconds_to_settle(self, versions: Iterable[str], settle_s: float, now_s: float) -> float:
        """Returns for how long subsets have not been there long enough; 0 if all have.

        Args:
            versions: The subsets.
            settle_s: How long they must have been there.
            now_s: The time, in seconds since the epoch.
        """
        named = set(versions)
        seen = [first_s for (_, name), first_s in self._subsets.items() if name in named]
        return max(0.0, max(seen) + settle_s - now_s) if seen else 0.0

    def next_revision(self, now_s: float) -> str:
        """Returns a text that no route of the rollout had before, of the time in milliseconds."""
        self._revision = max(int(1000 * now_s), self._revision + 1)
        return f"{self._revision:x}"

    def next_sticky_revision(self, live: str) -> str:
        """Returns a revision for routes that keep users, which the last few did not have.

        Args:
            live: The revision that the routes have; empty if they have none.
        """
        last = live if live in STICKY_REVISIONS else self._sticky_revision
        self._sticky_revision = following_sticky_revision(last)
        return self._sticky_revision


def _first_s(item: Manifest, now_s: float) -> float:
    """Returns since when an object is as it is: since it was made, if it has not changed since."""
    made = item.metadata.creation_timestamp
    if item.metadata.generation == 1 and made is not None:
        return min(made.timestamp(), now_s)
    return now_s
