"""``tidegate.dev/*`` annotations: features of Envoy that have no field in Istio."""

import datetime as dt
import enum
from dataclasses import dataclass

from tidegate.istio.recorded_routes import RecordedRoutes
from tidegate.istio.shapes import HeaderName

__all__ = [
    "DestinationRuleAnnotations",
    "HttpPath",
    "LoadBalancerOption",
    "NoAnnotations",
    "RolloutName",
    "ServiceEntryAnnotations",
    "Sticky",
    "VirtualServiceAnnotations",
    "WorkloadEntryAnnotations",
]


class LoadBalancerOption(enum.Enum):
    """Load balancing that Envoy has and Istio has no name for."""

    ORCA = "orca"
    FULL_SCAN = "full-scan"


@dataclass(frozen=True, slots=True)
class Sticky:
    """The part of a request that decides which weighted destination gets it: one of the two.

    Attributes:
        header: The header to hash.
        cookie: The cookie to hash.
    """

    header: HeaderName | None = None
    cookie: str | None = None

    def __str__(self) -> str:
        return f"cookie:{self.cookie}" if self.header is None else f"header:{self.header}"


@dataclass(frozen=True, slots=True)
class RolloutName:
    """The name of a rollout.

    Attributes:
        namespace: Its namespace.
        name: Its name in the namespace.
    """

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServiceAnnotations:
    """Annotations of a VirtualService.

    Attributes:
        sticky: ``header:NAME`` or ``cookie:NAME``: requests with the same value of the header or
            cookie go to the same weighted destination while the weights stay. A growing canary
            keeps the users that it has. Requests without it are divided one by one.
        rollout: ``NAMESPACE/NAME`` of the rollout that owns the weights, mirrors, stickiness and
            testers of the routes. The rollout writes and removes it.
        rollout_before: How the routes divided requests before the rollout, as JSON. The rollout
            writes it, and restores the routes from it at its end.
    """

    sticky: Sticky | None = None
    rollout: RolloutName | None = None
    rollout_before: RecordedRoutes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRuleAnnotations:
    """Annotations of a DestinationRule.

    Attributes:
        load_balancer: ``orca`` weights endpoints by the load that they report (client-side weighted
            round robin). ``full-scan`` picks the endpoint with the fewest requests of all
            endpoints, not of two.
        always_eject_one_host: ``"true"`` lets outlier detection eject one endpoint even where
            maxEjectionPercent amounts to less than one.
    """

    load_balancer: LoadBalancerOption | None = None
    always_eject_one_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntryAnnotations:
    """Annotations of a ServiceEntry.

    Attributes:
        p99: The 99th percentile of the host's response time. ``tidegate mesh lint`` compares
            timeouts with it.
    """

    p99: dt.timedelta | None = None


@dataclass(frozen=True, slots=True)
class HttpPath:
    """A path of a server.

    Attributes:
        path: The path, with its slash.
    """

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEntryAnnotations:
    """Annotations of a WorkloadEntry.

    Attributes:
        readiness: The path of an HTTP server that answers with a status below 400 while the server
            takes requests, such as ``/readyz``. The laptop's controller gets it periodically; on a
            cluster the readiness probe of the Pod does. Without it, the controller connects by TCP.
    """

    readiness: HttpPath | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnnotations:
    """Gateways have none."""
