"""The `TrafficObserver` interface: tells since when a written split is in force.

Istio acknowledges nothing to a controller. So whoever writes Istio objects on a cluster asks an
observer, which sees the requests that proxies finish.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from tidegate.rollout.traffic import Knowledge
from tidegate.traffic.router import TrafficError

__all__ = ["NotServedError", "Sighting", "TrafficObserver", "WrittenChange"]


class WrittenChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change of weights that is written and may not be in force yet.

    Attributes:
        host: The host's full name.
        before: The share of each version before, from 0 to 1.
        after: The share of each version after, from 0 to 1.
        revision: What the names of the new routes end with, after an ``@``; requests carry the
            name of their route. Empty if the routes kept their names, because others own them.
        written_s: When the API server had written it, in seconds since the epoch.
        settle_s: After how many seconds without a sign it is taken to be in force.
    """

    host: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    revision: str = ""
    written_s: float
    settle_s: float


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """Since when a change is in force, and how that is known.

    Attributes:
        since_s: Since when every request is divided by it, in seconds since the epoch.
        known: ``OBSERVED`` if requests show it, ``WRITTEN`` if it is assumed after `settle_s`.
        detail: More, in words: "seen in 214 requests through 3 proxies after 118 ms".
    """

    since_s: float
    known: Knowledge
    detail: str


class NotServedError(TrafficError):
    """Proxies have the new routes, and no server or no cluster for them: take the change back."""


class TrafficObserver(Protocol):
    """Sees the requests of the mesh."""

    async def in_force(self, change: WrittenChange) -> Sighting:
        """Returns once a change is in force, or is taken to be after its `settle_s`.

        Raises:
            NotServedError: Requests fail because a proxy knows no healthy server or no cluster of a
                version that gets a share only after the change.
        """
        ...
