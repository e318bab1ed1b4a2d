"""Whether the Ready endpoints of a version carry a share of the traffic.

The rule: when the rollout took the traffic, the baseline's Ready endpoints carried all of it. A
version with a share of the traffic needs the same share of that number, rounded up, and at least
one. A setting scales the rule for versions whose replicas carry more, or less, than the baseline's.

The baseline keeps the number that it had until the rollout has ended. Without it, an abort would
send all requests to fewer servers than carried them before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from tidegate.traffic.cluster.host_objects import HostObjects

__all__ = [
    "EndpointCount",
    "baseline_shortfall",
    "count_endpoints",
    "endpoints_needed",
    "share_shortfall",
]


@dataclass(frozen=True, slots=True)
class EndpointCount:
    """How many endpoints a subset has.

    Attributes:
        ready: Those that take requests.
        all: Those that take requests or do not.
    """

    ready: int
    all: int


def count_endpoints(objects: HostObjects, labels: Mapping[str, str]) -> EndpointCount:
    """Counts the endpoints whose Pods have some labels.

    Args:
        objects: What there is for the host.
        labels: The labels of a subset; without any, every endpoint counts.
    """
    ready = whole = 0
    for name, endpoint in objects.endpoints():
        found = objects.labels_of(name)
        if all(found.get(key) == value for key, value in labels.items()):
            whole += 1
            ready += endpoint.is_ready
    return EndpointCount(ready, whole)


def endpoints_needed(share: float, baseline: int, factor: float) -> int:
    """Returns how many Ready endpoints carry a share.

    Args:
        share: The share, in percent.
        baseline: The Ready endpoints of the baseline that carried all traffic.
        factor: How many of the version's endpoints carry what one of the baseline's does.
    """
    if share <= 0:
        return 0
    exact = Fraction(str(share)) / 100 * baseline * Fraction(str(factor))
    return max(1, math.ceil(exact))


def share_shortfall(
    version: str, share: float, count: EndpointCount, baseline: int, factor: float
) -> str:
    """Says what a version lacks for a share; empty if it lacks nothing."""
    needed = endpoints_needed(share, baseline, factor)
    if count.ready >= needed:
        return ""
    return f"{version} has {count.ready} of {count.all} ready endpoints; {share:g} % needs {needed}"


def baseline_shortfall(version: str, count: EndpointCount, recorded: int) -> str:
    """Says that the baseline has fewer Ready endpoints than it had; empty if it has them."""
    if count.ready >= recorded:
        return ""
    return (
        f"{version} has {count.ready} ready endpoints and had {recorded} when the rollout took the"
        f" traffic; scale it back to {recorded}, so that an abort finds servers"
    )
