"""Since when a written split is in force, told by the calls of a host: pure.

**Routes that carry a revision** tell it exactly. A proxy follows the split from its first call by
the new revision on, after the last one by another revision. The workers of an Envoy take new routes
a moment after each other, so the answer waits a while for calls by old routes that are late.

**Routes of others** carry no mark. There a test tells, with a probability of `ERROR` at most that
the answer is earlier than the truth: see `tidegate.router.istio_log.split_change`. It looks only at
calls that began so long ago that nearly all of that time have ended: otherwise a version that
answers faster would look as if it got more calls. Calls of a route that led to a version without
any share before the change are left out, since something else than the split divides them.

**Which proxies count.** Each that sent calls in the last `ACTIVE_S` seconds before the change, or
since. The split is in force when it is in the last of them. Callers without a proxy count together,
by the log of the servers' side.

Without calls, or if they do not show it in time, the split is taken to be in force after the settle
time. A proxy that certainly still sends calls by old routes is waited for.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tidegate.rollout.traffic import Knowledge
from tidegate.router.istio_log.host_calls import NO_PROXY, Call
from tidegate.router.istio_log.split_change import changed_since
from tidegate.traffic.observing import NotServedError, Sighting, WrittenChange

__all__ = ["ACTIVE_S", "ERROR", "sighting_of"]

ERROR: Final = 1e-3
"""With which probability, at most, an answer by versions alone is earlier than the truth."""

ACTIVE_S: Final = 10.0
"""How long before a change a proxy must have sent a call to be waited for, in seconds."""

# Clocks of proxies may be behind that of the API server, and a call may begin by old routes.
_SKEW_S: Final = 1.0
# An Envoy without a flush interval of its own sends its log after a second.
_SHORTEST_LAG_S: Final = 0.25
_LONGEST_LAG_S: Final = 30.0
_LATE_SHARE: Final = 0.005
# How long the workers of an Envoy take new routes after each other, at most.
_SPREAD_S: Final = 1.0


class _Seen(msgspec.Struct, frozen=True):
    """What the calls of one proxy show.

    Attributes:
        since_s: Since when it follows the new split; None if that is not known.
        still_old: Whether its last calls certainly follow old routes.
        calls: How many of its calls follow the new split.
    """

    since_s: float | None
    still_old: bool = False
    calls: int = 0


def sighting_of(
    change: WrittenChange, calls: Mapping[str, Sequence[Call]], now_s: float
) -> Sighting | None:
    """Tells whether a change is in force.

    Args:
        change: The change.
        calls: The calls of each proxy, in the order in which their records came.
        now_s: The time.

    Returns:
        Since when it is in force, or is taken to be; None if nobody knows yet.

    Raises:
        NotServedError: Calls fail because a proxy knows no healthy server or no cluster of a
            version that gets a share only after the change.
    """
    _check_served(change, calls)
    lag_s = _lag_s(calls, change.written_s)
    seen = _look(change, calls, now_s, lag_s)
    is_over = now_s >= change.written_s + change.settle_s
    known = [each.since_s for each in seen.values() if each.since_s is not None]
    if known and len(known) == len(seen):
        since_s = max(known)
        if now_s < since_s + lag_s and not is_over:
            # A call by an old route may have begun since, and have no record yet.
            return None
        return Sighting(
            since_s=since_s, known=Knowledge.OBSERVED, detail=_observed(change, seen, since_s)
        )
    if not is_over or any(each.still_old for each in seen.values()):
        return None
    return Sighting(
        since_s=max([change.written_s + change.settle_s, *known]),
        known=Knowledge.WRITTEN,
        detail=_assumed(change, seen, len(known), calls),
    )


def _check_served(change: WrittenChange, calls: Mapping[str, Sequence[Call]]) -> None:
    fresh = {name for name, share in change.after.items() if share and not change.before.get(name)}
    if not fresh:
        return
    for proxy, own in calls.items():
        failed = [each for each in own if each.not_served]
        if not failed:
            continue
        # What failed before the change, fails for another reason.
        failed_before = any(each.start_s < change.written_s and not each.version for each in failed)
        for each in failed:
            if each.version:
                due = each.version in fresh and each.start_s >= change.written_s - _SKEW_S
            elif change.revision:
                due = each.revision == change.revision
            else:
                due = each.start_s >= change.written_s and not failed_before
            if due:
                raise NotServedError(
                    f"{_name(proxy)} has the new routes, and no healthy server or no cluster for "
                    f"{' and '.join(sorted(fresh))}"
                )


def _look(
    change: WrittenChange, calls: Mapping[str, Sequence[Call]], now_s: float, lag_s: float
) -> dict[str, _Seen]:
    active_s = change.written_s - ACTIVE_S
    active = {
        proxy: own
        for proxy, own in calls.items()
        if any(each.start_s >= active_s and not each.not_served for each in own)
    }
    others = _routes_of_others(change, active)
    error = ERROR / max(1, len(active))
    seen = {}
    for proxy, own in active.items():
        relevant = [each for each in own if each.route not in others or each.revision is not None]
        if not relevant:
            continue
        if change.revision and proxy != NO_PROXY:
            seen[proxy] = _by_revision(change, relevant, now_s)
        elif not change.revision or change.before != change.after:
            mature = [each for each in relevant if each.start_s <= now_s - lag_s]
            seen[proxy] = _by_versions(change, mature, error)
    return seen


def _routes_of_others(change: WrittenChange, calls: Mapping[str, Sequence[Call]]) -> frozenset[str]:
    """The routes without a revision that the split does not divide."""
    earlier = [
        each for own in calls.values() for each in own if each.start_s < change.written_s - _SKEW_S
    ]
    if change.revision:
        if not any(each.revision is not None for each in earlier):
            # The first routes with a revision replace routes without one.
            return frozenset()
        return frozenset(
            each.route for own in calls.values() for each in own if each.revision is None
        )
    return frozenset(
        each.route for each in earlier if each.version and not change.before.get(each.version)
    )


def _by_revision(change: WrittenChange, calls: Sequence[Call], now_s: float) -> _Seen:
    new = sorted(each.start_s for each in calls if each.revision == change.revision)
    old = [each for each in calls if each.revision != change.revision]
    if not new:
        late_s = max(change.written_s + change.settle_s / 2, now_s - ACTIVE_S)
        return _Seen(None, still_old=any(each.start_s >= late_s for each in old))
    # Later calls by a route without a revision belong to somebody else's route.
    until_s = new[0] + _SPREAD_S
    last_old_s = max(
        (each.start_s for each in old if each.revision is not None or each.start_s < until_s),
        default=-math.inf,
    )
    after = [start_s for start_s in new if start_s > last_old_s]
    if not after:
        return _Seen(None, still_old=last_old_s >= now_s - ACTIVE_S)
    return _Seen(after[0], calls=len(after))


def _by_versions(change: WrittenChange, calls: Sequence[Call], error: float) -> _Seen:
    told = sorted(
        (each.start_s, each.version)
        for each in calls
        if each.version and each.start_s >= change.written_s - _SKEW_S
    )
    since_s = changed_since(told, change.before, change.after, error)
    if since_s is None:
        return _Seen(None)
    return _Seen(since_s, calls=sum(1 for start_s, _ in told if start_s >= since_s))


def _lag_s(calls: Mapping[str, Sequence[Call]], written_s: float) -> float:
    """How long after its start the record of a call has come, for nearly all calls.

    Records from before the change tell it. The calls of each version count by themselves, because a
    slow version may have few.
    """
    lags: dict[str, list[float]] = {}
    for own in calls.values():
        for each in own:
            if each.start_s < written_s:
                lags.setdefault(each.version, []).append(each.seen_s - each.start_s)
    found = [sorted(each)[int(len(each) * (1 - _LATE_SHARE))] for each in lags.values()]
    return min(max(found, default=_SPREAD_S) + _SHORTEST_LAG_S, _LONGEST_LAG_S)


def _observed(change: WrittenChange, seen: Mapping[str, _Seen], since_s: float) -> str:
    count = sum(each.calls for each in seen.values())
    text = (
        f"seen in {count} requests through {_proxies(seen)} after "
        f"{1000 * max(0.0, since_s - change.written_s):.0f} ms"
    )
    if not change.revision or NO_PROXY in seen:
        text += f"; told by their versions, with an error of {ERROR:g} at most"
    return text


def _assumed(
    change: WrittenChange,
    seen: Mapping[str, _Seen],
    known: int,
    calls: Mapping[str, Sequence[Call]],
) -> str:
    after = f"assumed {change.settle_s:g} s after it was written"
    starts = [each.start_s for own in calls.values() for each in own]
    if starts and max(starts) < change.written_s:
        # Requests are logged when they end, so some may be under way.
        return f"{after}: no request that began since has ended"
    if not seen:
        return f"{after}: no request came"
    if known:
        return f"{after}: seen through {known} of {len(seen)} proxies"
    if change.revision:
        return f"{after}: {_proxies(seen)} sent no request since"
    return f"{after}: the requests through {_proxies(seen)} do not show so small a change"


def _proxies(seen: Mapping[str, _Seen]) -> str:
    count = sum(1 for proxy in seen if proxy != NO_PROXY)
    words = [f"{count} prox{'y' if count == 1 else 'ies'}"] if count else []
    if NO_PROXY in seen:
        words.append("callers without a proxy")
    return " and ".join(words)


def _name(proxy: str) -> str:
    return proxy or "a server's proxy"
