"""What the loops of all rollouts share, and how they run."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.rollout.spec.model import Rollout
from tidegate.router.faults import OnFaultPoint, pass_by
from tidegate.router.hosts import HostClaims
from tidegate.router.pacing import Pace
from tidegate.router.registry import Registry
from tidegate.router.sources.source import TrafficSource
from tidegate.router.store import RolloutStore
from tidegate.traffic.router import TrafficRouter

__all__ = ["LoopSettings", "Surroundings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How the loops run; `RouterSettings` says what each means."""

    evaluate_interval_s: float = 1.0
    evidence_interval_s: float = 10.0
    read_timeout_s: float = 5.0
    apply_timeout_s: float = 300.0
    prometheus_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the loops share.

    Attributes:
        traffic_of: Gives what reads and changes the traffic of a rollout.
        source_of: Gives the source of a rollout's evidence.
        store: Keeps the steps.
        registry: The rollouts, for watchers.
        hosts: Which rollout has which host.
        settings: How the loops run.
        clock: Gives the time in seconds since the epoch.
        at: Called at each fault point.
        pace: Spreads their turns over the event loop.
    """

    traffic_of: Callable[[Rollout], TrafficRouter]
    source_of: Callable[[Rollout], TrafficSource]
    store: RolloutStore
    registry: Registry
    hosts: HostClaims
    settings: LoopSettings
    clock: Callable[[], float]
    at: OnFaultPoint = pass_by
    pace: Pace = field(default_factory=Pace)
