"""The division of a host's traffic among its versions, as a value.

The engine decides a `TrafficSplit`, and a `TrafficRouter` puts it in force: by Istio objects on a
laptop, and on a cluster.
"""

import enum
from typing import ClassVar

import msgspec

__all__ = [
    "Applied",
    "HostTraffic",
    "Knowledge",
    "MatchKind",
    "Sticky",
    "TesterMatch",
    "TrafficSplit",
]


class MatchKind(enum.Enum):
    """Where a tester's value is."""

    HEADER = "header"
    COOKIE = "cookie"


class TesterMatch(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Requests that go to one version whatever the weights are.

    Attributes:
        kind: Whether a header or a cookie is compared.
        name: The header's name in lower case, or the cookie's name.
        value: The exact value; empty means any value.
        version: The version that gets the requests.
    """

    # Its name looks like a test's to pytest.
    __test__: ClassVar[bool] = False

    kind: MatchKind
    name: str
    value: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}{f'={self.value}' if self.value else ''}"


class Sticky(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the version of a user's requests, so that they stay with one version.

    Attributes:
        kind: Whether a header or a cookie is hashed.
        name: The header's name in lower case, or the cookie's name.
    """

    kind: MatchKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.name}"


class TrafficSplit(msgspec.Struct, frozen=True, kw_only=True):
    """How a host's requests are divided among its versions.

    Attributes:
        weights: The share of each version in percent, by subset. The shares sum to 100.
        testers: Requests that go to one version whatever the weights are.
        sticky: What keeps a user on one version; None for each request by itself.
        mirrors: The percentage of the requests of which a version gets copies, by subset.
    """

    weights: dict[str, float]
    testers: tuple[TesterMatch, ...] = ()
    sticky: Sticky | None = None
    mirrors: dict[str, float] = {}

    def __str__(self) -> str:
        words = [f"{name} {weight:g}%" for name, weight in self.weights.items()]
        words += [f"copies to {name} {percent:g}%" for name, percent in self.mirrors.items()]
        words += [f"{match} to {match.version}" for match in self.testers]
        if self.sticky is not None:
            words.append(f"sticky by {self.sticky}")
        return ", ".join(words)

    def same_as(self, other: "TrafficSplit") -> bool:
        """Whether both divide traffic alike; a version without a share counts as absent."""
        return _present(self) == _present(other)


class Knowledge(enum.Enum):
    """How it is known that a split is in force."""

    ACKNOWLEDGED = "every proxy has acknowledged it and its workers use it"
    OBSERVED = "the access log shows it"
    WRITTEN = "the objects say so"


class HostTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """The traffic of a host as it is now.

    Attributes:
        host: The host's full name.
        split: The split in force.
        versions: The subsets that the host has.
        owner: The rollout that owns the host's traffic, as ``namespace/name``; empty if none does.
        ready: The subsets that have a healthy endpoint.
        problem: Why the split cannot be told as one, such as routes that differ; empty otherwise.
        warning: What somebody should mend although the split holds, such as a baseline that is
            scaled down; empty otherwise.
    """

    host: str
    split: TrafficSplit
    versions: tuple[str, ...]
    owner: str = ""
    ready: tuple[str, ...] = ()
    problem: str = ""
    warning: str = ""


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """A split that is in force.

    Attributes:
        since_s: Since when every request is divided by it, in seconds since the epoch.
        requested_s: When the change was begun. Requests that started in between may have been
            divided by either split.
        known: How that is known.
        detail: More, in words: "acknowledged by 2 proxies in 41 ms".
    """

    since_s: float
    requested_s: float
    known: Knowledge
    detail: str = ""


def _present(split: TrafficSplit) -> tuple[object, ...]:
    weights = {name: round(weight, 3) for name, weight in split.weights.items() if weight}
    mirrors = {name: round(percent, 3) for name, percent in split.mirrors.items() if percent}
    return weights, frozenset(split.testers), split.sticky, mirrors
