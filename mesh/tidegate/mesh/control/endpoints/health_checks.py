"""Which health check each endpoint gets.

The location and the protocol of the hosts that use an endpoint decide, as they are now: hosts may
move in and out of the mesh, change their protocol and share an address.

- Endpoints of a host outside of the mesh (``MESH_EXTERNAL``) are not checked and count as healthy,
  as in istiod. Nor are those that proxies find by DNS.
- A gRPC port is asked over ``grpc.health.v1``, unless a DestinationRule has it called with TLS: the
  controller has no certificates.
- Any other port is connected to by TCP, as by a ``tcpSocket`` probe of Kubernetes.

A server at one address has one state. So where several hosts use an address, it gets the strictest
check that any of them asks for, and hosts that ask for none ignore its result.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.istio.destination_rule import ClientTlsMode
from tidegate.istio.objects import IstioObjects
from tidegate.istio.service_entry import PortProtocol, Resolution
from tidegate.mesh.compiler.hosts.services import (
    RegisteredPort,
    RegisteredService,
    ServiceRegistryBuilder,
)
from tidegate.mesh.compiler.hosts.upstreams import Upstream, Upstreams, UpstreamsBuilder
from tidegate.mesh.compiler.settings import MeshSettings

__all__ = ["EndpointChecks", "HealthCheck", "HealthCheckTiming", "is_checked"]

_GRPC: Final = (PortProtocol.GRPC, PortProtocol.GRPC_WEB)


class HealthCheck(enum.IntEnum):
    """How an endpoint's health is found out; the stricter check is the greater."""

    NONE = 0
    TCP = 1
    GRPC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckTiming:
    """How often endpoints are checked, and how many failures count.

    Attributes:
        interval_s: time between two checks of an endpoint; 0 checks none by the clock.
        timeout_s: how long an endpoint may take to answer a check.
        failures: failed checks in a row after which an endpoint is unhealthy.
    """

    interval_s: float = 1.0
    timeout_s: float = 1.0
    failures: int = 3


class EndpointChecks:
    """The checks of all endpoints, found again only when the objects change.

    Args:
        settings: what the objects are compiled with.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._builders: list[tuple[ServiceRegistryBuilder, UpstreamsBuilder]] = []
        self._targets: list[Upstreams] = []
        self._checks: Mapping[str, HealthCheck] = {}

    def of(self, objects: Iterable[IstioObjects]) -> Mapping[str, HealthCheck]:
        """The check of each endpoint, by ``address:port``.

        Args:
            objects: the objects in effect, and those of a change that is being made.
        """
        found = []
        for index, each in enumerate(objects):
            if index == len(self._builders):
                builders = ServiceRegistryBuilder(self._settings), UpstreamsBuilder(self._settings)
                self._builders.append(builders)
            services, targets = self._builders[index]
            found.append(targets.build(services.build(each), each.destination_rules))
        if found != self._targets:
            self._targets = found
            self._checks = _checks(found)
        return self._checks


def is_checked(service: RegisteredService) -> bool:
    """Whether the health of a host's endpoints is checked."""
    return not service.external and service.resolution is Resolution.STATIC


def _checks(targets: Iterable[Upstreams]) -> dict[str, HealthCheck]:
    checks: dict[str, HealthCheck] = {}
    for each in targets:
        for target in each.by_host.values():
            for port in target.service.ports.values():
                check = _check(target.service, port)
                with_tls = _with_tls(target, port) if check is HealthCheck.GRPC else frozenset()
                for endpoint in port.endpoints:
                    address = endpoint.key
                    own = HealthCheck.TCP if address in with_tls else check
                    checks[address] = max(own, checks.get(address, HealthCheck.NONE))
    return checks


def _check(service: RegisteredService, port: RegisteredPort) -> HealthCheck:
    if not is_checked(service):
        return HealthCheck.NONE
    return HealthCheck.GRPC if port.protocol in _GRPC else HealthCheck.TCP


def _with_tls(target: Upstream, port: RegisteredPort) -> frozenset[str]:
    """The endpoints of a port, ``address:port``, that some cluster calls with TLS."""
    if not target.rules:
        return frozenset()
    return frozenset(
        endpoint.key
        for subset in (None, *target.subsets)
        if (tls := target.policy(port.number, subset).tls) and tls.mode is not ClientTlsMode.DISABLE
        for endpoint in target.endpoints(port, subset)
    )
