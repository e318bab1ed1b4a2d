"""The state of every endpoint: its health, unless a person has taken it out of use."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from tidegate.istio.objects import IstioObjects
from tidegate.mesh.compiler.settings import EndpointState
from tidegate.mesh.control.endpoints.health_checks import EndpointChecks, HealthCheckTiming
from tidegate.mesh.control.endpoints.health_watch import HealthWatch
from tidegate.mesh.control.served_configuration import ServedConfiguration
from tidegate.runtime.logging import get_logger

__all__ = ["EndpointMonitor", "EndpointStatus"]

_log = get_logger(__name__)

_TAKEN_OUT: Final = "it was taken out of use; UndrainEndpoint takes it in again"


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """The state of an endpoint.

    Attributes:
        state: Whether it takes requests.
        reason: Why it does not take requests, or is assumed to; empty if it says so itself.
        since: When it entered the state, in seconds since 1970.
        checked: Whether its health is checked.
    """

    state: EndpointState
    reason: str
    since: float
    checked: bool


class EndpointMonitor:
    """Applies the states of endpoints to what is served. A context that watches them.

    Args:
        served: What is served.
        watches: How many endpoints may be checked.
        timing: How often each of them is checked.
    """

    def __init__(
        self, served: ServedConfiguration, watches: int, timing: HealthCheckTiming
    ) -> None:
        self._served = served
        self._checks = EndpointChecks(served.settings)
        self._health = HealthWatch(watches, lambda _: self._later(), timing)
        self._statuses: dict[str, EndpointStatus] = {}
        self._drained: set[str] = set()
        self._due = False

    async def __aenter__(self) -> Self:
        await self._health.__aenter__()
        self._served.on_objects = self._later
        self._refresh()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._served.on_objects = lambda: None
        await self._health.__aexit__(*error)

    @property
    def statuses(self) -> dict[str, EndpointStatus]:
        """The state of each endpoint, by ``address:port``."""
        return self._statuses

    async def answered(self, deadline_s: float) -> None:
        """Waits until every checked endpoint has answered, or the deadline passes."""
        await self._health.answered(deadline_s)
        self._refresh()

    def change(self, change: Callable[[IstioObjects], IstioObjects]) -> None:
        """Adds and removes workloads, at once.

        Raises:
            CompileErrors: With these workloads the objects contradict each other.
        """
        self._served.refresh(self._states(), change)

    def drain(self, address: str) -> None:
        """Takes an endpoint out of use."""
        self._drained.add(address)
        self._refresh()

    def undrain(self, address: str) -> None:
        """Takes an endpoint into use again."""
        self._drained.discard(address)
        self._refresh()

    def why_unhealthy(self, cluster: str) -> str:
        """Says why no endpoint of a cluster takes requests."""
        reasons = [
            f"{address}: {self._statuses[address].reason}" if address in self._statuses else address
            for address in sorted(self._served.addresses(cluster))
        ]
        return ", ".join(reasons) or "no server has its labels"

    def _later(self) -> None:
        """Refreshes once for all changes of this turn of the event loop."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._refresh)

    def _refresh(self) -> None:
        self._due = False
        checks = self._checks.of(self._served.in_use)
        self._health.watch(checks)
        self._drained &= checks.keys()
        states = self._states()
        if states != self._served.states:
            self._served.refresh(states)

    def _states(self) -> dict[str, EndpointState]:
        now = time.time()
        statuses: dict[str, EndpointStatus] = {}
        for address, seen in self._health.seen.items():
            state = EndpointState.HEALTHY if seen.serving else EndpointState.UNHEALTHY
            reason = seen.reason
            if address in self._drained:
                state, reason = EndpointState.DRAINING, _TAKEN_OUT
            known = self._statuses.get(address)
            changed = known is None or (known.state, known.reason) != (state, reason)
            since = now if known is None or changed else known.since
            statuses[address] = EndpointStatus(state, reason, since, seen.checked)
            if known is not None and changed:
                _log.info("endpoint", endpoint=address, state=state.value, reason=reason or None)
        self._statuses = statuses
        return {address: status.state for address, status in statuses.items()}
