"""The topology for the status and the metrics: hosts, subsets, and what runs at an address.

A record of a request comes after the request has ended. By then the server may be gone, and another
server may have its address. So the topology remembers for a while what ran at an address.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from tidegate.istio import IstioObjects
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.mesh.compiler import MeshSettings, cluster_name
from tidegate.mesh.compiler.hosts.services import (
    Endpoint,
    RegisteredService,
    ServiceRegistry,
    ServiceRegistryBuilder,
)
from tidegate.mesh.telemetry import IstioWorkload

__all__ = ["SubsetView", "Topology"]

# Longer than a stream may go on after its endpoint has gone, and a limit for made-up addresses.
_REMEMBERED_S: Final = 3600.0
_MAX_REMEMBERED: Final = 10_000
_MAX_TENANCIES: Final = 8


@dataclass(frozen=True, slots=True)
class _Tenancy:
    """What ran at an address, and when, in seconds since 1970.

    Attributes:
        workload: What ran there.
        since_s: When it began to run.
        until_s: When it ended; ``None`` while it runs.
    """

    workload: IstioWorkload
    since_s: float
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class SubsetView:
    """A subset of a host, or the host as a whole.

    Attributes:
        name: Its name; ``None`` for the host as a whole.
        clusters: Its xDS clusters, one for each port.
        addresses: Its endpoints, ``address:port``.
    """

    name: SubsetName | None
    clusters: tuple[str, ...]
    addresses: tuple[str, ...]


class Topology:
    """The hosts and workloads of the objects in effect, computed again only when they change.

    Args:
        settings: The settings of the compiler.
        clock: Gives the time, in seconds since 1970.
    """

    def __init__(self, settings: MeshSettings, clock: Callable[[], float] = time.time) -> None:
        self._builder = ServiceRegistryBuilder(settings)
        self._of_the_next = ServiceRegistryBuilder(settings)
        self._clock = clock
        self._services: tuple[ServiceRegistry, ...] = ()
        self._now: dict[str, _Tenancy] = {}
        # By address, the newest last.
        self._before: dict[str, tuple[_Tenancy, ...]] = {}

    def note(self, *in_use: IstioObjects) -> None:
        """Takes the objects in use. Call it whenever they change.

        Args:
            in_use: The objects in effect, and those of the current change.
        """
        builders = (self._builder, self._of_the_next)
        services = tuple(
            builder.build(each) for builder, each in zip(builders, in_use, strict=False)
        )
        if services == self._services:
            return
        # Workloads of the first call count for requests that began earlier too.
        since = self._clock() if self._services else 0.0
        self._services = services
        # Where both name a workload at an address, the objects in effect count.
        found = {
            endpoint.key: IstioWorkload.from_labels(
                endpoint.workload, endpoint.namespace, endpoint.labels
            )
            for each in reversed(services)
            for service in each.by_host.values()
            for endpoint in _endpoints(service)
        }
        for address, tenancy in list(self._now.items()):
            if found.get(address) != tenancy.workload:
                del self._now[address]
                earlier = self._before.pop(address, ())
                self._before[address] = (*earlier, replace(tenancy, until_s=since))
        for address, workload in found.items():
            if address not in self._now:
                self._now[address] = _Tenancy(workload, since)
        self._forget(since)

    def _forget(self, now_s: float) -> None:
        for address, tenancies in list(self._before.items()):
            kept = tuple(
                each for each in tenancies if (each.until_s or now_s) >= now_s - _REMEMBERED_S
            )
            # A server that restarts again and again would fill the memory otherwise.
            kept = kept[-_MAX_TENANCIES:]
            if kept:
                self._before[address] = kept
            else:
                del self._before[address]
        for address in list(self._before)[:-_MAX_REMEMBERED]:
            del self._before[address]

    def workload_at(self, address: str, at_s: float) -> IstioWorkload | None:
        """What ran at an ``address:port``.

        Args:
            address: The address.
            at_s: When a request to it began, in seconds since 1970.
        """
        now = self._now.get(address)
        if now is not None and now.since_s <= at_s:
            return now.workload
        for each in reversed(self._before.get(address, ())):
            if each.since_s <= at_s:
                return each.workload
        return None if now is None else now.workload

    def hosts(
        self, objects: IstioObjects
    ) -> Iterator[tuple[RegisteredService, tuple[SubsetView, ...]]]:
        """Every host with its subsets, the host as a whole first.

        Args:
            objects: The objects in effect.
        """
        labels: dict[HostName, dict[SubsetName, dict[str, str]]] = {}
        for rule in objects.destination_rules.values():
            known = labels.setdefault(rule.host, {})
            known.update((each.name, dict(each.labels)) for each in rule.subsets)
        for host, service in sorted(self._builder.build(objects).by_host.items()):
            subsets: list[tuple[SubsetName | None, dict[str, str]]] = [(None, {})]
            subsets += sorted(labels.get(host, {}).items())
            yield service, tuple(_view(service, name, wanted) for name, wanted in subsets)


def _view(
    service: RegisteredService, name: SubsetName | None, labels: dict[str, str]
) -> SubsetView:
    return SubsetView(
        name,
        tuple(cluster_name(service.host, port, name) for port in service.ports),
        tuple(
            dict.fromkeys(
                endpoint.key
                for endpoint in _endpoints(service)
                if labels.items() <= endpoint.labels.items()
            )
        ),
    )


def _endpoints(service: RegisteredService) -> Iterator[Endpoint]:
    for port in service.ports.values():
        yield from port.endpoints
