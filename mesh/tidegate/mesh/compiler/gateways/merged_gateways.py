"""Merged gateways: the route configurations in which Envoy looks up the domains of a port.

All HTTP servers of a port share one merged gateway, ``http.PORT``, whatever Gateway they are in.
Each HTTPS server has its own, because its certificate decides for which domains it answers. (Istio
uses the word for the same thing: servers of several Gateways, merged by port.)

Order, as in istiod: servers stand in the order of their Gateways' names, and then as they are
written. A server that redirects to HTTPS is ignored if an earlier server of the port redirects one
of its domains.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from tidegate.istio.gateway import Gateway, GatewayProtocol, Server
from tidegate.istio.names import ObjectName
from tidegate.istio.shapes import GatewayName
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.naming import is_wildcard

__all__ = [
    "Domain",
    "GatewayServer",
    "MergedGateway",
    "MergedGateways",
    "domains_of",
    "gateway_name",
]


class Domain(NamedTuple):
    """A domain that a server takes.

    Attributes:
        only_from: The only namespace whose VirtualServices may route it; None for any.
        name: The domain.
    """

    only_from: str | None
    name: str


_EVERYTHING: Final = "*/*"


def domains_of(gateway: Gateway, server: Server) -> Iterator[Domain]:
    """The domains that a server takes, as they are written.

    ``*/*`` takes every domain of every namespace, so istiod forgets the hosts beside it.
    """
    if _EVERYTHING in server.hosts:
        yield Domain(None, "*")
        return
    for host in server.hosts:
        namespace, slash, domain = host.rpartition("/")
        if namespace == ".":
            namespace = gateway.name.namespace
        yield Domain(namespace if slash and namespace != "*" else None, domain)


def gateway_name(name: ObjectName) -> GatewayName:
    """The name by which VirtualServices refer to a Gateway: ``NAMESPACE/NAME``."""
    return GatewayName(f"{name.namespace}/{name.name}")


@dataclass(frozen=True, slots=True)
class GatewayServer:
    """One server of a Gateway, with its domains sorted.

    Attributes:
        gateway: The Gateway.
        server: The server as it is written.
        domains: The domains that it takes, in lower case.
        by_name: The domains that are named in full.
        wildcards: The domains with a ``*``.
    """

    gateway: Gateway
    server: Server
    domains: tuple[Domain, ...] = field(repr=False, compare=False)
    by_name: Mapping[str, tuple[Domain, ...]] = field(repr=False, compare=False)
    wildcards: tuple[Domain, ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, gateway: Gateway, server: Server) -> Self:
        """Sorts the domains of a server."""
        domains = tuple(
            Domain(only_from, name.lower()) for only_from, name in domains_of(gateway, server)
        )
        by_name: dict[str, tuple[Domain, ...]] = {}
        for each in domains:
            if not is_wildcard(each.name):
                by_name[each.name] = (*by_name.get(each.name, ()), each)
        wildcards = tuple(each for each in domains if is_wildcard(each.name))
        return cls(gateway, server, domains, by_name, wildcards)

    @property
    def gateway_name(self) -> GatewayName:
        """The name by which VirtualServices refer to the Gateway."""
        return gateway_name(self.gateway.name)

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self.server.port.number

    @property
    def tls(self) -> bool:
        """Whether it ends TLS."""
        return self.server.port.protocol is GatewayProtocol.HTTPS

    @property
    def redirects(self) -> bool:
        """Whether it redirects plain HTTP to HTTPS."""
        return bool(self.server.tls and self.server.tls.https_redirect)

    @property
    def route_configuration(self) -> str:
        """The name of the merged gateway that it is part of."""
        if not self.tls:
            return f"http.{self.port}"
        gateway = self.gateway.name
        return f"https.{self.port}.{self.server.port.name}.{gateway.name}.{gateway.namespace}"

    def domains_near(self, host: str) -> Iterable[Domain]:
        """The domains that can overlap with a host.

        A server may name a thousand domains; a host that is named in full equals one at most.
        """
        if is_wildcard(host):
            return self.domains
        return (*self.by_name.get(host, ()), *self.wildcards)


@dataclass(frozen=True, slots=True, eq=False)
class MergedGateway:
    """The servers that share one route configuration.

    Attributes:
        name: The name of the route configuration.
        port: The port on which it listens.
        tls: Whether connections are secured.
        servers: Its servers, in order.
        scoped: Whether Envoy looks domains up among scopes. The Gateways alone decide it, so no
            VirtualService ever changes a listener.
        redirected: The domains, by these very names, that a server redirects to HTTPS. A domain
            that only one namespace may route is redirected where that namespace routes it
            (`GatewayBinding`).
    """

    name: str
    port: int
    tls: bool
    servers: tuple[GatewayServer, ...]
    scoped: bool
    redirected: frozenset[str] = field(init=False, repr=False)

    @classmethod
    def of(cls, name: str, servers: tuple[GatewayServer, ...]) -> Self:
        """Merges servers."""
        # A scope's key matches itself only.
        scoped = not any(is_wildcard(domain) for each in servers for _, domain in each.domains)
        return cls(name, servers[0].port, servers[0].tls, servers, scoped)

    @property
    def grpc_web(self) -> bool:
        """Whether it serves browsers: as in istiod, the first server of a port decides it."""
        return self.servers[0].server.port.protocol is GatewayProtocol.GRPC_WEB

    def __post_init__(self) -> None:
        redirecting = (
            each for server in self.servers if server.redirects for each in server.domains
        )
        names = frozenset(domain for only_from, domain in redirecting if only_from is None)
        object.__setattr__(self, "redirected", names)


@dataclass(frozen=True, slots=True, eq=False)
class MergedGateways:
    """All merged gateways of a mesh.

    Attributes:
        by_name: The merged gateways by their names.
        by_gateway: The merged gateways that have servers of a Gateway.
        errors: What keeps servers from sharing a port.
    """

    by_name: Mapping[str, MergedGateway]
    by_gateway: Mapping[GatewayName, tuple[MergedGateway, ...]]
    errors: tuple[CompileError, ...]

    def updated(self, gateways: Iterable[Gateway]) -> "MergedGateways":
        """Merges all Gateways; one with the same servers as before is the same value."""
        merged: dict[str, list[GatewayServer]] = defaultdict(list)
        by_port: dict[int, list[GatewayServer]] = defaultdict(list)
        redirected: dict[int, set[Domain]] = defaultdict(set)
        by_gateway: dict[GatewayName, list[MergedGateway]] = {}
        for gateway in sorted(gateways, key=lambda each: (each.name.name, each.name.namespace)):
            for written in gateway.servers:
                server = GatewayServer.of(gateway, written)
                by_gateway.setdefault(server.gateway_name, [])
                by_port[server.port].append(server)
                if server.redirects:
                    # istiod ignores the whole server.
                    if not redirected[server.port].isdisjoint(server.domains):
                        continue
                    redirected[server.port].update(server.domains)
                merged[server.route_configuration].append(server)
        by_name = {name: self._merged(name, tuple(servers)) for name, servers in merged.items()}
        for each in by_name.values():
            for name in dict.fromkeys(server.gateway_name for server in each.servers):
                by_gateway[name].append(each)
        return MergedGateways(
            by_name,
            {name: tuple(group) for name, group in by_gateway.items()},
            tuple(error for group in by_port.values() for error in _conflicts(group)),
        )

    def _merged(self, name: str, servers: tuple[GatewayServer, ...]) -> MergedGateway:
        known = self.by_name.get(name)
        if known is not None and known.servers == servers:
            return known
        return MergedGateway.of(name, servers)


def _conflicts(servers: list[GatewayServer]) -> Iterator[CompileError]:
    """What keeps the servers of one port from sharing it."""
    first = servers[0]
    for server in servers[1:]:
        index = server.gateway.servers.index(server.server)
        path = f"spec.servers[{index}].port"
        number = server.port
        if server.tls != first.tls:
            yield CompileError(
                server.gateway.name,
                path,
                f"port {number} is {first.server.port.protocol.value} in {first.gateway.name}",
                "give HTTP and HTTPS different ports",
            )
        elif server.tls:
            others = servers[: servers.index(server)]
            if any(server.route_configuration == each.route_configuration for each in others):
                yield CompileError(
                    server.gateway.name,
                    f"{path}.name",
                    f"another server of port {number} is called {server.server.port.name} too",
                    "give each HTTPS server of a gateway its own port name",
                )
            taken = {domain for other in others for _, domain in other.domains}
            for domain in sorted(taken & {domain for _, domain in server.domains}):
                yield CompileError(
                    server.gateway.name,
                    f"spec.servers[{index}].hosts",
                    f"another HTTPS server of port {number} takes {domain} too",
                    "name each domain once: it decides which certificate is shown",
                )
