"""Which health check each endpoint gets.

The hosts that use an endpoint decide, by their present location and protocol. Hosts may move into
and out of the mesh, change their protocol and share an address.

- Endpoints of a host outside of the mesh (``MESH_EXTERNAL``) are not checked and count as healthy,
  as in istiod. The same holds for endpoints that proxies find by DNS.
- A gRPC port is checked over ``grpc.health.v1``, unless a DestinationRule has proxies call it with
  TLS: the controller has no certificates.
- An HTTP port of a workload that names a path for it (`tidegate.dev/readiness`) is checked by
  getting the path, as with an ``httpGet`` probe of Kubernetes.
- Any other port is checked by a TCP connection, as with a ``tcpSocket`` probe of Kubernetes.

A server at one address has one state. If several hosts use an address, it gets the strictest check
that any of them requires. Hosts that require no check ignore the result.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.istio.destination_rule import ClientTlsMode
from tidegate.istio.objects import IstioObjects
from tidegate.istio.service_entry import PortProtocol, Resolution
from tidegate.mesh.compiler.hosts.services import (
    Endpoint,
    RegisteredPort,
    RegisteredService,
    ServiceRegistryBuilder,
)
from tidegate.mesh.compiler.hosts.upstreams import Upstream, Upstreams, UpstreamsBuilder
from tidegate.mesh.compiler.settings import MeshSettings

__all__ = ["CheckKind", "EndpointChecks", "HealthCheck", "HealthCheckTiming", "is_checked"]

_GRPC: Final = (PortProtocol.GRPC, PortProtocol.GRPC_WEB)
# With HTTP/2 without TLS, or unknown, a GET over HTTP/1.1 may fail although the server serves.
_HTTP: Final = (PortProtocol.HTTP,)


class CheckKind(enum.IntEnum):
    """How the controller checks an endpoint; the stricter check is the greater."""

    NONE = 0
    TCP = 1
    HTTP = 2
    GRPC = 3


@dataclass(frozen=True, slots=True, order=True)
class HealthCheck:
    """The check of an endpoint.

    Attributes:
        kind: How the controller checks it.
        path: The path to get, for a check over HTTP.
    """

    kind: CheckKind
    path: str = ""


_NONE: Final = HealthCheck(CheckKind.NONE)
_TCP: Final = HealthCheck(CheckKind.TCP)
_GRPC_HEALTH: Final = HealthCheck(CheckKind.GRPC)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckTiming:
    """How often endpoints are checked, and how many failures count.

    Attributes:
        interval_s: Time between two checks of an endpoint; 0 turns periodic checks off.
        timeout_s: How long an endpoint may take to answer a check.
        failures: Failed checks in a row after which an endpoint is unhealthy.
    """

    interval_s: float = 1.0
    timeout_s: float = 1.0
    failures: int = 3


class EndpointChecks:
    """The checks of all endpoints, computed again only when the objects change.

    Args:
        settings: The settings of the compiler.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._builders: list[tuple[ServiceRegistryBuilder, UpstreamsBuilder]] = []
        self._targets: list[Upstreams] = []
        self._checks: Mapping[str, HealthCheck] = {}

    def of(self, objects: Iterable[IstioObjects]) -> Mapping[str, HealthCheck]:
        """The check of each endpoint, by ``address:port``.

        Args:
            objects: The objects in effect, and those of the current change.
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
                with_tls = _with_tls(target, port) if is_checked(target.service) else frozenset()
                for endpoint in port.endpoints:
                    address = endpoint.key
                    own = _TCP if address in with_tls else _check(target.service, port, endpoint)
                    checks[address] = max(own, checks.get(address, _NONE))
    return checks


def _check(service: RegisteredService, port: RegisteredPort, endpoint: Endpoint) -> HealthCheck:
    if not is_checked(service):
        return _NONE
    if port.protocol in _GRPC:
        return _GRPC_HEALTH
    if port.protocol in _HTTP and endpoint.readiness:
        return HealthCheck(CheckKind.HTTP, endpoint.readiness)
    return _TCP


def _with_tls(target: Upstream, port: RegisteredPort) -> frozenset[str]:
    """The endpoints of a port, ``address:port``, that proxies call with TLS in some cluster."""
    if not target.rules:
        return frozenset()
    return frozenset(
        endpoint.key
        for subset in (None, *target.subsets)
        if (tls := target.policy(port.number, subset).tls) and tls.mode is not ClientTlsMode.DISABLE
        for endpoint in target.endpoints(port, subset)
    )
