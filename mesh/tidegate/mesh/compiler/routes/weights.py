"""Weights: how a route divides its requests, and how a cohort stays together while weights move.

For each request Envoy takes a number modulo the sum of the weights. It goes down the
list of destinations until the weights passed exceed the remainder. By default the number is random.

With a hash of a header instead, a user always has the same number. Then the destination that comes
first has the users below its weight. If its weight grows and the sum stays the same, it keeps its
users and gains new ones. So where a hash decides, weights are brought to one constant sum, whatever
their sum in the object.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from tidegate.istio.virtual_service import HttpRoute, HttpRouteDestination, VirtualService
from tidegate.mesh.compiler.routes.destinations import RouteContext

__all__ = ["STICKY_TOTAL", "WeightedCluster", "for_random", "for_sticky", "weighted_clusters"]

STICKY_TOTAL: Final = 1_000_000
"""The sum of weights where a hash decides: its unit is a ten-thousandth of a percent."""

# Envoy keeps the sum in 32 bits.
_GREATEST_TOTAL: Final = 2**32 - 1


class WeightedCluster(NamedTuple):
    """A destination that gets requests.

    Attributes:
        destination: The destination in the rule.
        cluster: The name of its cluster.
        weight: Its weight.
    """

    destination: HttpRouteDestination
    cluster: str
    weight: int


def weighted_clusters(
    virtual_service: VirtualService, path: str, rule: HttpRoute, context: RouteContext
) -> list[WeightedCluster]:
    """The destinations of a rule that get requests.

    A single destination gets all requests, whatever its weight. Of several, those without weight
    get none and are left out.

    Args:
        virtual_service: The object.
        path: The path of the rule in it.
        rule: The rule.
        context: Where the route is; it takes errors.
    """
    clusters = [
        context.cluster(
            virtual_service.name, f"{path}.route[{index}].destination", each.destination
        )
        for index, each in enumerate(rule.route)
    ]
    if len(rule.route) == 1:
        return [WeightedCluster(rule.route[0], clusters[0], 1)]
    written = [each.weight for each in rule.route]
    weights = for_sticky(written) if virtual_service.annotations.sticky else for_random(written)
    return [
        WeightedCluster(each, cluster, weight)
        for each, cluster, weight in zip(rule.route, clusters, weights, strict=True)
        if weight
    ]


def for_random(weights: Sequence[int]) -> tuple[int, ...]:
    """Weights as they are written, unless their sum is too great for Envoy."""
    if sum(weights) <= _GREATEST_TOTAL:
        return tuple(weights)
    return for_sticky(weights)


def for_sticky(weights: Sequence[int]) -> tuple[int, ...]:
    """Weights in the same proportion whose sum is always `STICKY_TOTAL`.

    Args:
        weights: Weights as they are written; one at least is above 0.
    """
    total = sum(weights)
    bounds = (passed * STICKY_TOTAL // total for passed in accumulate(weights, initial=0))
    return tuple(upper - lower for lower, upper in pairwise(bounds))
