"""How many requests still run on what is about to go, as every live proxy reports it."""

import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Final

from tidegate.mesh.ads import Distribution
from tidegate.mesh.resources import ProxyKind
from tidegate.mesh.telemetry.load_reports import LoadReports

__all__ = ["Loads"]

# A gRPC client reports once a second, and not at all while it has nothing to report.
_SILENCE_IS_ZERO_S: Final = 3.0


class Loads:
    """Requests in progress.

    Args:
        reports: what the proxies say.
        distribution: which proxies there are.
    """

    def __init__(self, reports: LoadReports, distribution: Distribution) -> None:
        self._reports = reports
        self._distribution = distribution

    def watch(self, clusters: Collection[str]) -> AbstractContextManager[None]:
        """Has the proxies report on clusters while the context is open; what is counted is newer.

        Enter it once nothing new can begin there.
        """
        return self._reports.watch(clusters)

    def last_known(self, cluster: str, address: str | None = None) -> int | None:
        """What the proxies said last; ``None`` when none did. Unwatched clusters are not known."""
        told = [
            each.requests if address is None else each.at(address)
            for each in self._reports.in_progress(cluster).values()
        ]
        known = [each for each in told if each is not None]
        return sum(known) if known else None

    def running(
        self,
        cluster: str,
        watched_since: float,
        *,
        address: str | None = None,
        proxy_kind: ProxyKind | None = None,
    ) -> int | None:
        """Counts the requests that run on a cluster which is watched.

        Args:
            cluster: the cluster.
            watched_since: since when, by the monotonic clock.
            address: counts only those on this endpoint, ``address:port``.
            proxy_kind: counts only those of these proxies.

        Returns:
            The number; ``None`` while some live proxy has not said.
        """
        told = {
            node: each.requests if address is None else each.at(address)
            for node, each in self._reports.in_progress(cluster).items()
        }
        silent = time.monotonic() - watched_since > _SILENCE_IS_ZERO_S
        for each in self._distribution.proxies():
            if proxy_kind not in (None, each.proxy_kind):
                told.pop(each.proxy.node, None)
            elif told.get(each.proxy.node) is None and not (
                silent and each.proxy_kind is ProxyKind.GRPC
            ):
                return None
        return sum(filter(None, told.values()))
