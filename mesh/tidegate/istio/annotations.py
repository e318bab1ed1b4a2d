"""``tidegate.dev/*`` annotations: what model serving needs of Envoy and Istio has no field for."""

import datetime as dt
import enum
from dataclasses import dataclass

from tidegate.istio.shapes import HeaderName

__all__ = [
    "DestinationRuleAnnotations",
    "LoadBalancerOption",
    "NoAnnotations",
    "ServiceEntryAnnotations",
    "Sticky",
    "VirtualServiceAnnotations",
]


class LoadBalancerOption(enum.Enum):
    """Load balancing that Envoy has and Istio does not name."""

    ORCA = "orca"
    FULL_SCAN = "full-scan"


@dataclass(frozen=True, slots=True)
class Sticky:
    """What of a request decides to which weighted destination it goes.

    Attributes:
        header: the header whose value is hashed.
    """

    header: HeaderName

    def __str__(self) -> str:
        return f"header:{self.header}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServiceAnnotations:
    """Annotations of a VirtualService.

    Attributes:
        sticky: ``header:NAME``: requests with the same value of the header go to the same weighted
            destination as long as the weights stay, and a canary's cohort only grows with it.
    """

    sticky: Sticky | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRuleAnnotations:
    """Annotations of a DestinationRule.

    Attributes:
        load_balancer: ``orca`` weighs endpoints by the load that they report (client-side weighted
            round robin); ``full-scan`` takes the endpoint with the fewest requests of all, not of
            two.
        always_eject_one_host: ``"true"`` lets outlier detection eject one endpoint even where
            maxEjectionPercent comes to less than one.
    """

    load_balancer: LoadBalancerOption | None = None
    always_eject_one_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntryAnnotations:
    """Annotations of a ServiceEntry.

    Attributes:
        p99: how long the slowest hundredth of its answers takes; ``tidegate mesh lint`` compares
            timeouts with it.
    """

    p99: dt.timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnnotations:
    """Gateways and WorkloadEntries have none."""
