"""Destinations of routes: the cluster of a host, a port and a subset.

istiod makes up the name of a cluster that does not exist, and Envoy answers 503. Here a destination
that does not exist is an error, before any proxy hears of it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.istio.destination_rule import ConsistentHash
from tidegate.istio.names import ObjectName
from tidegate.istio.shapes import GatewayName, HostName
from tidegate.istio.virtual_service import Destination, HttpRoute, Mirror, VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.hosts.upstreams import Upstream
from tidegate.mesh.compiler.naming import cluster_name

__all__ = ["RouteContext", "destination_port", "hosts_of", "hosts_of_rule", "mirrors_of"]

_LISTED: Final = 4
"""How many names an error lists."""


@dataclass(frozen=True, slots=True)
class RouteContext:
    """Where routes hold, the hosts that they may name, and a list for errors.

    Attributes:
        gateway: The gateway of the routes, or ``mesh``.
        port: The port that clients call.
        tls: Whether clients call it by TLS.
        upstreams: All hosts.
        errors: Takes the errors that are found.
    """

    gateway: GatewayName
    port: int
    tls: bool
    upstreams: Mapping[HostName, Upstream]
    errors: list[CompileError]

    def cluster(self, source: ObjectName, path: str, destination: Destination) -> str:
        """The name of a destination's cluster.

        Args:
            source: The object that names the destination.
            path: The path of the destination in it.
            destination: The destination.

        Returns:
            The name; empty where the destination does not exist, which adds an error.
        """
        upstream = self.upstreams.get(destination.host)
        if upstream is None:
            self._add_error(
                source,
                f"{path}.host",
                f"there is no host {destination.host}",
                "correct the name, or define the host with an exported ServiceEntry",
            )
            return ""
        ports = upstream.service.ports
        port = destination_port(destination, ports)
        if port is None and destination.port is None and self.port in ports:
            port = self.port
        if port is None:
            named = destination.port is not None
            self._add_error(
                source,
                f"{path}.port",
                f"{destination.host} has no port {destination.port}"
                if named
                else f"{destination.host} has {len(ports)} ports, none of them "
                f"{self.port} at which clients call",
                f"name one of {_listed(ports)}",
            )
            return ""
        if destination.subset is not None and destination.subset not in upstream.subsets:
            rule = " and ".join(str(each.name) for each in upstream.rules) or "no DestinationRule"
            self._add_error(
                source,
                f"{path}.subset",
                f"{destination.host} has no subset {destination.subset} ({rule} is for it)",
                f"define it in a DestinationRule, or name one of {_listed(upstream.subsets)}",
            )
            return ""
        return cluster_name(destination.host, port, destination.subset)

    def consistent_hash(self, destination: Destination) -> ConsistentHash | None:
        """The hash that chooses a destination's endpoint, if one does."""
        upstream = self.upstreams.get(destination.host)
        if upstream is None:
            return None
        subset = destination.subset if destination.subset in upstream.subsets else None
        return upstream.hashed_by(destination.port, subset)

    def _add_error(self, source: ObjectName, path: str, reason: str, fix: str) -> None:
        self.errors.append(CompileError(source, path, reason, fix))


def destination_port(destination: Destination, ports: Collection[int]) -> int | None:
    """The port of a destination: the one that it names, else the host's only one.

    Args:
        destination: The destination.
        ports: The ports of its host.

    Returns:
        The port; None where the host does not have it, or has several and none is named.
    """
    if destination.port is not None:
        return destination.port if destination.port in ports else None
    return next(iter(ports)) if len(ports) == 1 else None


def mirrors_of(rule: HttpRoute) -> Iterator[tuple[str, Mirror]]:
    """The mirrors of a rule, each with the path of its destination in the rule."""
    if rule.mirror is not None:
        percentage = 100.0 if rule.mirror_percentage is None else rule.mirror_percentage
        yield "mirror", Mirror(destination=rule.mirror, percentage=percentage)
    for index, each in enumerate(rule.mirrors):
        yield f"mirrors[{index}].destination", each


def hosts_of_rule(rule: HttpRoute) -> Iterator[HostName]:
    """The hosts that a rule names in destinations and mirrors."""
    for weighted in rule.route:
        yield weighted.destination.host
    for _, mirror in mirrors_of(rule):
        yield mirror.destination.host


def hosts_of(virtual_service: VirtualService) -> Iterator[HostName]:
    """The hosts that the rules of a VirtualService name."""
    return (host for rule in virtual_service.http for host in hosts_of_rule(rule))


def _listed(names: Iterable[object]) -> str:
    listed = sorted(map(str, names))
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return (", ".join(listed[:_LISTED]) + more) or "none: there are none"
