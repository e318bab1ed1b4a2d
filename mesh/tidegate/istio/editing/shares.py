"""Converts shares of a host, in percent, to weights of a route: whole numbers that Istio accepts.

A share is a percentage of the host's requests in the route, which other hosts may share. It becomes
a weight in two steps:

1. **Shares.** A named subset gets exactly its share. The host's other destinations divide the rest
in their present proportion, in whole percent, or in the decimals of the named shares where these
are finer. The largest remainders are rounded up (Hare's method). If whole percents would round a
used destination to 0, finer steps apply.
2. **Weights.** Where the host has the route for itself the weights sum to 100, or to the smallest
multiple without a fraction. Where other hosts share the route, the first of three ways that
gives whole numbers applies: keep the other hosts' weights; make the sum 100; multiply all
weights by the smallest factor. The other hosts keep their exact share in each of them.

A route that already has the shares is left unchanged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

from tidegate.istio.errors import EditError
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.istio.virtual_service import HttpRouteDestination

__all__ = ["MAX_DECIMALS", "check_shares", "divided", "with_shares"]

MAX_DECIMALS: Final = 3
"""Most decimals of a percentage."""

_MAX_SUM: Final = 2**31 - 1
_FINER: Final = (1, 10, 100, 1000)


def check_shares(shares: Mapping[SubsetName, float], place: str = "weights") -> None:
    """Checks shares without a route.

    Args:
        shares: The shares of subsets, in percent.
        place: The field that has them.

    Raises:
        EditError: A share is not a percentage, or their sum is more than 100.
    """
    for index, (subset, share) in enumerate(shares.items()):
        field = f"{place}[{index}].weight"
        # This comparison also catches NaN.
        if not 0 <= share <= 100:
            raise EditError(
                f"the share of {subset} cannot be {share:g}; write a percentage from 0 to 100",
                field,
            )
        if 10**MAX_DECIMALS % _exact(share).denominator:
            raise EditError(
                f"the share of {subset} cannot be {share}; write at most {MAX_DECIMALS} decimals",
                field,
            )
    if (whole := sum(map(_exact, shares.values()))) > 100:
        raise EditError(
            f"{_shares_text(shares)} add up to {float(whole):g} %; shares are percentages of the "
            "host's requests, so make them 100 or less",
            place,
        )


def with_shares(
    route: Sequence[HttpRouteDestination],
    host: HostName,
    shares: Mapping[SubsetName, float],
    place: str,
) -> Sequence[HttpRouteDestination]:
    """Returns the destinations of a route with other shares of a host, new subsets in front.

    Args:
        route: The destinations, at least one of the host.
        host: The host.
        shares: The shares of subsets, in percent of the host's requests; see `check_shares`.
        place: The name of the route in errors.

    Returns:
        The identical destinations where they already have the shares, or the host gets no request.

    Raises:
        EditError: No destination can get the rest, or the shares cannot be written as weights.
    """
    is_single = len(route) == 1
    own = [each for each in route if each.destination.host == host]
    weights = [int(is_single) or each.weight for each in own]
    if not sum(weights):
        return route
    asked = {name: _exact(share) for name, share in shares.items()}
    present = {each.destination.subset for each in own}
    added = [name for name in asked if name not in present]
    if not added and _has_shares(own, weights, asked):
        return route
    destinations = [*_new_destinations(own, added, place), *own]
    before = [0] * len(added) + weights
    parts = _parts_of_host(destinations, before, asked, place)
    others = [each for each in route if each.destination.host != host]
    found, factor = _weights(parts, sum(before), [each.weight for each in others], place)
    numbers = iter(found[len(added) :])
    return (
        *(replace(destinations[index], weight=found[index]) for index in range(len(added))),
        *(
            replace(each, weight=next(numbers))
            if each.destination.host == host
            else replace(each, weight=int(each.weight * factor))
            for each in route
        ),
    )


def divided(total: int, shares: Sequence[int]) -> list[int]:
    """Divides a total into whole numbers in the proportion of shares (largest remainders)."""
    whole = sum(shares)
    if whole == 0:
        return [0] * len(shares)
    parts = [total * share // whole for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: -(total * shares[index] % whole))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _has_shares(
    own: Sequence[HttpRouteDestination],
    weights: Sequence[int],
    asked: Mapping[SubsetName, Fraction],
) -> bool:
    """Returns whether every named subset has its share."""
    whole = sum(weights)
    got = dict.fromkeys(asked, 0)
    for each, weight in zip(own, weights, strict=True):
        if each.destination.subset in got:
            got[each.destination.subset] += weight
    return all(Fraction(got[name] * 100, whole) == share for name, share in asked.items())


def _new_destinations(
    own: Sequence[HttpRouteDestination], added: Sequence[SubsetName], place: str
) -> list[HttpRouteDestination]:
    """Returns destinations for subsets that a route does not name yet."""
    ports = dict.fromkeys(each.destination.port for each in own)
    if added and len(ports) > 1:
        names = ", ".join("none" if port is None else str(port) for port in ports)
        raise EditError(
            f"{place} sends requests to {own[0].destination.host} at several ports ({names}), so "
            f"the port of {', '.join(added)} is not known; add it to the route by hand, with "
            "weight 0"
        )
    model = own[0].destination
    return [HttpRouteDestination(destination=replace(model, subset=name)) for name in added]


def _parts_of_host(
    destinations: Sequence[HttpRouteDestination],
    before: Sequence[int],
    asked: Mapping[SubsetName, Fraction],
    place: str,
) -> list[Fraction]:
    """Returns each destination's part of its host's requests; the parts sum to 1."""
    indexes: dict[SubsetName | None, list[int]] = {}
    for index, each in enumerate(destinations):
        named = each.destination.subset in asked
        indexes.setdefault(each.destination.subset if named else None, []).append(index)
    rest = 100 - sum(asked.values())
    bases = {
        group: _bases(found, before) if group is not None else [before[one] for one in found]
        for group, found in indexes.items()
    }
    if rest:
        others = indexes.get(None, [])
        if others and not any(bases[None]) and others[-1] == len(destinations) - 1:
            # The last destination is the baseline and gets what the others lose.
            bases[None][-1] = 1
        _check_rest(destinations, others, bases.get(None, ()), asked, place)
    least = math.lcm(*(share.denominator for share in asked.values()))
    units = [0] * len(destinations)
    for finer in _FINER:
        steps = least * finer
        for group, found in indexes.items():
            share = rest if group is None else asked[group]
            for one, number in zip(found, divided(int(share * steps), bases[group]), strict=True):
                units[one] = number
        # No share is rounded to zero.
        if all(
            units[one]
            for group, found in indexes.items()
            if (rest if group is None else asked[group])
            for one, base in zip(found, bases[group], strict=True)
            if base
        ):
            break
    return [Fraction(each, 100 * steps) for each in units]


def _bases(found: Sequence[int], before: Sequence[int]) -> list[int]:
    """Returns the proportion of one subset's destinations; the first gets all where all have 0."""
    bases = [before[one] for one in found]
    return bases if any(bases) else [1] + [0] * (len(found) - 1)


def _check_rest(
    destinations: Sequence[HttpRouteDestination],
    others: Sequence[int],
    bases: Iterable[int],
    asked: Mapping[SubsetName, Fraction],
    place: str,
) -> None:
    """Checks that some destination can get the rest that the named subsets leave."""
    takers = [one for one, base in zip(others, bases, strict=True) if base]
    shares = {name: float(share) for name, share in asked.items()}
    whole = f"{_shares_text(shares)} add{'s' * (len(asked) == 1)} up to {sum(shares.values()):g} %"
    if not takers:
        names = ", ".join(str(destinations[one].destination.subset) for one in others)
        idle = f" than {names}, which gets none now" if others else ""
        raise EditError(
            f"{whole}, and {place} has no other subset{idle} for the rest: make the shares 100"
        )
    if any(destinations[one].destination.subset is None for one in takers):
        raise EditError(
            f"{whole}, and the rest would go to {place}'s destination without a subset, that is to "
            f"every endpoint, those of {', '.join(asked)} too: name every subset, and make the "
            "shares 100"
        )


def _weights(
    parts: Sequence[Fraction], own: int, others: Sequence[int], place: str
) -> tuple[list[int], Fraction]:
    """Returns the parts as weights, and the factor of the other hosts' weights."""
    whole = own + sum(others)
    if not any(others):
        return _multiplied(parts, Fraction(100 * _denominator([100 * part for part in parts]))), (
            Fraction(1)
        )
    mine = [part * own for part in parts]
    divisor = math.gcd(own, *others)
    for factor in (
        Fraction(1),
        Fraction(100, whole),
        Fraction(_denominator(mine)),
        Fraction(_denominator([each / divisor for each in mine]), divisor),
    ):
        numbers: list[Fraction | int] = [*mine, *others]
        exact = _denominator([each * factor for each in numbers]) == 1
        if exact and whole * factor <= _MAX_SUM:
            return _multiplied(mine, factor), factor
    raise EditError(
        f"{place} cannot have these shares: the weights would sum to more than {_MAX_SUM}; make "
        "the weights of the route smaller, or the shares rounder"
    )


def _multiplied(parts: Sequence[Fraction], factor: Fraction) -> list[int]:
    return [int(part * factor) for part in parts]


def _denominator(numbers: Iterable[Fraction | int]) -> int:
    return math.lcm(*(Fraction(each).denominator for each in numbers))


def _exact(share: float) -> Fraction:
    """Returns the decimal number as it was written."""
    return Fraction(str(share))


def _shares_text(shares: Mapping[SubsetName, float]) -> str:
    return " ".join(f"{name}={share:g}" for name, share in shares.items())
