"""Destinations of routes: which cluster a host, a port and a subset are, and what is hashed for it.

istiod makes up a cluster's name and leaves it to Envoy to answer 503 where there is none. Here
a destination that is not there is an error, before any proxy hears of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from envoy.config.route.v3 import route_components_pb2

from tidegate.istio.destination_rule import ConsistentHash
from tidegate.istio.names import ObjectName
from tidegate.istio.shapes import GatewayName, HeaderName, HostName
from tidegate.istio.virtual_service import Destination, VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.hosts.services import Service
from tidegate.mesh.compiler.hosts.upstreams import Target
from tidegate.mesh.compiler.naming import cluster_name
from tidegate.mesh.compiler.protobuf import duration

__all__ = ["Scope", "destinations_of", "hash_by_header", "hash_policy"]

_SOME: Final = 4
"""How many names an error lists."""

_HashPolicy: TypeAlias = route_components_pb2.RouteAction.HashPolicy


@dataclass(frozen=True, slots=True)
class Scope:
    """For whom routes are made, and what went wrong with them.

    Attributes:
        gateway: the gateway at which the routes are, or ``mesh``.
        port: the port that clients call.
        tls: whether they call it by TLS.
        targets: all hosts.
        errors: takes what is found wrong.
    """

    gateway: GatewayName
    port: int
    tls: bool
    targets: Mapping[HostName, Target]
    errors: list[CompileError]

    def cluster(self, source: ObjectName, path: str, destination: Destination) -> str:
        """The name of a destination's cluster; empty where it is wrong, and that is noted."""
        target = self.targets.get(destination.host)
        if target is None:
            self._note(
                source,
                f"{path}.host",
                f"there is no host {destination.host}",
                "mend the name, or define the host with an exported ServiceEntry",
            )
            return ""
        port = _port(target.service, destination, self.port)
        if port is None:
            named = destination.port is not None
            self._note(
                source,
                f"{path}.port",
                f"{destination.host} has no port {destination.port}"
                if named
                else f"{destination.host} has {len(target.service.ports)} ports, none of them "
                f"{self.port} at which clients call",
                f"name one of {_names(target.service.ports)}",
            )
            return ""
        if destination.subset is not None and destination.subset not in target.subsets:
            rule = " and ".join(str(each.name) for each in target.rules) or "no DestinationRule"
            self._note(
                source,
                f"{path}.subset",
                f"{destination.host} has no subset {destination.subset} ({rule} is for it)",
                f"define it in a DestinationRule, or name one of {_names(target.subsets)}",
            )
            return ""
        return cluster_name(destination.host, port, destination.subset)

    def consistent_hash(self, destination: Destination) -> ConsistentHash | None:
        """What a destination's endpoint is chosen by, if by a hash."""
        target = self.targets.get(destination.host)
        if target is None:
            return None
        subset = destination.subset if destination.subset in target.subsets else None
        return target.hashed_by(destination.port, subset)

    def _note(self, source: ObjectName, path: str, reason: str, fix: str) -> None:
        self.errors.append(CompileError(source, path, reason, fix))


def destinations_of(service: VirtualService) -> Iterator[HostName]:
    """The hosts that the routes of a VirtualService name."""
    for rule in service.http:
        for weighted in rule.route:
            yield weighted.destination.host
        for mirror in rule.mirrors:
            yield mirror.destination.host
        if rule.mirror:
            yield rule.mirror.host


def hash_policy(hashing: ConsistentHash) -> _HashPolicy:
    """What Envoy hashes of a request."""
    if hashing.http_header_name:
        return hash_by_header(hashing.http_header_name)
    policy = _HashPolicy()
    if hashing.http_cookie:
        cookie = hashing.http_cookie
        policy.cookie.name = cookie.name
        if cookie.path:
            policy.cookie.path = cookie.path
        if cookie.ttl is not None:
            policy.cookie.ttl.CopyFrom(duration(cookie.ttl))
    elif hashing.http_query_parameter_name:
        policy.query_parameter.name = hashing.http_query_parameter_name
    else:
        policy.connection_properties.source_ip = True
    return policy


def hash_by_header(header: HeaderName) -> _HashPolicy:
    """Makes Envoy hash a header."""
    policy = _HashPolicy()
    policy.header.header_name = header
    return policy


def _port(service: Service, destination: Destination, called: int) -> int | None:
    """The port of a destination: as named, else the only one, else the one that was called."""
    if destination.port is not None:
        return destination.port if destination.port in service.ports else None
    if len(service.ports) == 1:
        return next(iter(service.ports))
    return called if called in service.ports else None


def _names(names: Iterable[object]) -> str:
    listed = sorted(map(str, names))
    more = f" and {len(listed) - _SOME} more" if len(listed) > _SOME else ""
    return (", ".join(listed[:_SOME]) + more) or "none: there are none"
