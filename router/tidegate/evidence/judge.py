"""The three functions that everything else calls: begin, observe a window, assess."""

from tidegate.evidence.assessment import Assessment
from tidegate.evidence.plan import EvidencePlan
from tidegate.evidence.state import EvidenceState
from tidegate.evidence.window import TrafficWindow

__all__ = ["assess", "begin", "observe"]


def begin(plan: EvidencePlan) -> EvidenceState:
    """Returns the state before any traffic."""
    raise NotImplementedError


def observe(plan: EvidencePlan, state: EvidenceState, window: TrafficWindow) -> EvidenceState:
    """Returns the state after a window. The cost does not grow with the requests or the windows."""
    raise NotImplementedError


def assess(plan: EvidencePlan, state: EvidenceState) -> Assessment:
    """Returns what the evidence says now."""
    raise NotImplementedError
