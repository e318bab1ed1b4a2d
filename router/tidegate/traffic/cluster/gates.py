"""What must be true before a version gets a larger share of the traffic.

Istio does not tell a controller whether proxies can follow new weights. So the controller looks at
what proxies will get: the subsets of the DestinationRule, and the Ready endpoints of each.
"""

from collections.abc import Iterator

from tidegate.rollout.traffic import TrafficSplit
from tidegate.traffic.cluster.capacity import baseline_shortfall, share_shortfall
from tidegate.traffic.cluster.reading import HostView

__all__ = ["capacity_of_baseline", "fresh_versions", "shortfall"]


def shortfall(view: HostView, after: TrafficSplit, baseline: str, factor: float) -> str:
    """Says what keeps a split from being served; empty if nothing does.

    A share that stays or falls needs nothing. A larger share of the baseline needs one Ready
    endpoint: it takes traffic from a candidate, and to wait for more would keep a bad one.

    Args:
        view: The host as it is.
        after: The split that is wanted.
        baseline: The baseline.
        factor: How many endpoints of a candidate carry what one of the baseline's does.
    """
    return "; ".join(_missing(view, after, baseline, factor))


def capacity_of_baseline(view: HostView, baseline: str) -> int:
    """Returns the Ready endpoints of the baseline that carried all traffic."""
    recorded = view.recorded_capacity
    return view.count(baseline).ready if recorded is None else recorded


def fresh_versions(view: HostView, after: TrafficSplit) -> tuple[str, ...]:
    """Returns the versions that get requests only after a change."""
    before = view.traffic.split
    had = {name for name, share in before.weights.items() if share}
    had |= {each.version for each in before.testers}
    named = [name for name, share in after.weights.items() if share]
    named += [each.version for each in after.testers]
    return tuple(dict.fromkeys(name for name in named if name not in had))


def _missing(view: HostView, after: TrafficSplit, baseline: str, factor: float) -> Iterator[str]:
    before = view.traffic.split
    capacity = capacity_of_baseline(view, baseline)
    fresh = fresh_versions(view, after)
    rising = [
        name for name, share in after.weights.items() if share > before.weights.get(name, 0.0)
    ]
    for name in dict.fromkeys((*rising, *fresh)):
        share = after.weights.get(name, 0.0)
        if name not in view.traffic.versions:
            known = ", ".join(view.traffic.versions) or "none"
            yield (
                f"no DestinationRule of {view.traffic.host} has the subset {name}; it has {known}"
            )
        elif name == baseline or not share:
            if not view.count(name).ready:
                yield f"{name} has no ready endpoint"
        elif words := share_shortfall(name, share, view.count(name), capacity, factor):
            yield words
    if any(name != baseline for name in rising) and (
        words := baseline_shortfall(baseline, view.count(baseline), capacity)
    ):
        yield words
