"""Converts between the splits that the engine decides and those that edits of objects take."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tidegate.istio.annotations import Sticky as StickyAnnotation
from tidegate.istio.editing.splits import HostSplit
from tidegate.istio.editing.tester_routes import SplitTester
from tidegate.istio.shapes import HeaderName, SubsetName
from tidegate.rollout.traffic import MatchKind, Sticky, TesterMatch, TrafficSplit

__all__ = ["host_split", "ordered_split", "probe_split", "traffic_split"]

_DECIMALS: Final = 3


def host_split(split: TrafficSplit, sticky: StickyAnnotation | None) -> HostSplit:
    """Returns the split as edits take it.

    Args:
        split: The split; its stickiness is not used.
        sticky: The value of ``tidegate.dev/sticky`` that the VirtualService is to have. In an
            object of others it is what they wrote.
    """
    return HostSplit(
        weights={SubsetName(name): each for name, each in _rounded(split.weights).items()},
        testers=tuple(map(_split_tester, split.testers)),
        sticky=sticky,
        mirrors={SubsetName(name): each for name, each in split.mirrors.items()},
    )


def traffic_split(split: HostSplit, sticky: Sticky | None) -> TrafficSplit:
    """Returns the split as the engine takes it.

    Args:
        split: The split; its annotation alone keeps no user on a version.
        sticky: What does, if anything does.
    """
    return TrafficSplit(
        weights={str(name): each for name, each in split.weights.items()},
        testers=tuple(map(_tester_match, split.testers)),
        sticky=sticky,
        mirrors={str(name): each for name, each in split.mirrors.items()},
    )


def probe_split(before: TrafficSplit, after: TrafficSplit, percent: float) -> TrafficSplit | None:
    """Returns the split that tries versions before they get a larger share.

    Args:
        before: The split in force.
        after: The split that is wanted.
        percent: The share that tries a version.

    Returns:
        A split that gives each version without traffic that share, and takes it from the largest;
        None if no version goes from nothing to more than that.
    """
    fresh = [
        name
        for name, share in after.weights.items()
        if share > percent and not before.weights.get(name)
    ]
    present = {name: share for name, share in before.weights.items() if share}
    if not fresh or not present:
        return None
    largest = max(present, key=lambda name: present[name])
    rest = present[largest] - percent * len(fresh)
    if rest <= 0:
        return None
    weights = {**present, largest: rest, **dict.fromkeys(fresh, percent)}
    # Its users are among those of the split that follows.
    return TrafficSplit(
        weights=_rounded(weights),
        testers=before.testers,
        sticky=after.sticky,
        mirrors=before.mirrors,
    )


def ordered_split(split: TrafficSplit, candidates: Sequence[str]) -> TrafficSplit:
    """Returns the split with its versions in the order in which routes name them.

    Users stay on a version while its place and the shares before it stay. A split that was stored
    may have another order.

    Args:
        split: The split.
        candidates: The versions that come first.
    """
    first = [name for name in candidates if name in split.weights]
    others = sorted(split.weights.keys() - set(first))
    weights = {name: split.weights[name] for name in (*first, *others)}
    return msgspec.structs.replace(split, weights=weights)


def _rounded(shares: Mapping[str, float]) -> dict[str, float]:
    """Returns shares with the decimals that weights can have; 100 - 0.3 has an error far behind."""
    return {name: round(share, _DECIMALS) for name, share in shares.items()}


def _split_tester(tester: TesterMatch) -> SplitTester:
    with_cookie = tester.kind is MatchKind.COOKIE
    return SplitTester(
        header=None if with_cookie else HeaderName(tester.name),
        cookie=tester.name if with_cookie else None,
        value=tester.value,
        subset=SubsetName(tester.version),
    )


def _tester_match(tester: SplitTester) -> TesterMatch:
    return TesterMatch(
        kind=MatchKind.COOKIE if tester.header is None else MatchKind.HEADER,
        name=tester.cookie or "" if tester.header is None else tester.header,
        value=tester.value,
        version=tester.subset,
    )
