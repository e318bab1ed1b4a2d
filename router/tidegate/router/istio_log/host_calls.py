"""The recent calls of a host, by the proxy that sent them: pure, in bounded memory.

The proxies of a host are those whose calls were seen. Callers without a proxy stand together as
one, `NO_PROXY`, because only the servers' side tells of them.
"""

from collections import deque
from typing import Final, NamedTuple

from tidegate.istio.editing.tester_routes import TESTER_ROUTE_PREFIX
from tidegate.mesh.v1 import mesh_pb2
from tidegate.router.sources.request import NOT_SERVED_FLAGS

__all__ = ["KEPT_S", "NO_PROXY", "Call", "HostCalls"]

KEPT_S: Final = 30.0
"""How long calls are kept while no change is awaited, in seconds."""

NO_PROXY: Final = ""
"""Stands for all callers without a proxy."""

_MAX_PROXIES: Final = 2000
# Of a host while a change is awaited; a look at them takes some 50 ms.
_MAX_CALLS: Final = 50_000
# Enough to know how late records come, and which routes lead to which versions.
_IDLE_CALLS: Final = 500
_NANO: Final = 1e-9


class Call(NamedTuple):
    """A call that has ended.

    Attributes:
        start_s: When it began, by the clock of its proxy, in seconds since the epoch.
        seen_s: When its record came, by the clock of this process.
        version: The subset that it went to; empty if it reached none.
        route: The name of its route, without the revision.
        revision: What follows the ``@`` in the name of its route; None without one.
        not_served: Whether its proxy knew no healthy server or no cluster for it.
    """

    start_s: float
    seen_s: float
    version: str
    route: str
    revision: str | None
    not_served: bool


class HostCalls:
    """The recent calls of a host.

    Attributes:
        awaited: How many changes are awaited; while there are none, few calls are kept.
    """

    def __init__(self) -> None:
        self.awaited = 0
        self._proxies: dict[str, deque[Call]] = {}

    def add(self, record: mesh_pb2.RequestRecord, seen_s: float) -> None:
        """Notes the record of a call. Copies and requests of testers are not divided by weights."""
        if record.mirrored or record.by_headers or record.route.startswith(TESTER_ROUTE_PREFIX):
            return
        route, marked, revision = record.route.partition("@")
        # istiod ends the name of a route with that of its match, if the match has one.
        revision = revision.partition(".")[0]
        proxy = NO_PROXY if record.server_side else record.proxy
        calls = self._proxies.get(proxy)
        if calls is None:
            self._make_room()
            calls = self._proxies[proxy] = deque()
        calls.append(
            Call(
                start_s=record.start.seconds + record.start.nanos * _NANO,
                seen_s=seen_s,
                version=record.subset,
                route=route,
                revision=revision if marked else None,
                not_served=not NOT_SERVED_FLAGS.isdisjoint(record.response_flags),
            )
        )
        most = _IDLE_CALLS
        if self.awaited:
            most = max(_IDLE_CALLS, _MAX_CALLS // len(self._proxies))
        while len(calls) > most:
            calls.popleft()

    def forget_before(self, seen_s: float) -> None:
        """Forgets what came earlier, and proxies without a call since."""
        for proxy, calls in list(self._proxies.items()):
            while calls and calls[0].seen_s < seen_s:
                calls.popleft()
            if not calls:
                del self._proxies[proxy]

    def by_proxy(self) -> dict[str, tuple[Call, ...]]:
        """Returns the calls of each proxy, in the order in which their records came."""
        return {proxy: tuple(calls) for proxy, calls in self._proxies.items()}

    def _make_room(self) -> None:
        if len(self._proxies) >= _MAX_PROXIES:
            oldest = min(self._proxies, key=lambda proxy: self._proxies[proxy][-1].seen_s)
            del self._proxies[oldest]
