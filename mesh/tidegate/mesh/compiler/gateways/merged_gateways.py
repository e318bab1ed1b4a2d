"""Merged gateways: where traffic enters the mesh, and which VirtualService applies there.

An entrance is where a domain is looked up. All HTTP servers of a port, of whatever gateway, are
one, ``http.PORT``; each HTTPS server is its own, as its certificate decides for whom it is. A
VirtualService is bound to an entrance under every domain that both it and a server of the gateway
name, and under the narrower name of the two where one has a ``*``. As in istiod, servers stand in
the order of their gateways' names and then as they are written; a server that redirects to HTTPS
is ignored if one before it at the port redirects one of its domains; and a VirtualService of which
no rule holds at a gateway's port is not bound there.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from tidegate.istio.gateway import Gateway, GatewayProtocol, Server
from tidegate.istio.names import MESH
from tidegate.istio.shapes import GatewayName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.naming import is_wildcard, narrower
from tidegate.mesh.compiler.settings import OWN_NAMESPACE

__all__ = ["Binding", "Domain", "GatewayServer", "MergedGateway", "MergedGateways", "bind"]


class Domain(NamedTuple):
    """A domain that is taken at a server.

    Attributes:
        only_from: the only namespace that may route it, if it is not any.
        name: the domain, in small letters.
    """

    only_from: str | None
    name: str


@dataclass(frozen=True, slots=True)
class GatewayServer:
    """A server of a gateway.

    Attributes:
        gateway: the gateway.
        server: the server.
        domains: the domains taken here, each with the only namespace that may route it, if any.
        by_name: those that are named in full.
        wildcards: the others.
    """

    gateway: Gateway
    server: Server
    domains: tuple[Domain, ...] = field(repr=False, compare=False)
    by_name: Mapping[str, tuple[Domain, ...]] = field(repr=False, compare=False)
    wildcards: tuple[Domain, ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, gateway: Gateway, server: Server) -> Self:
        """Sorts the domains of a server."""
        domains = tuple(_taken(gateway, server))
        by_name: dict[str, tuple[Domain, ...]] = {}
        for each in domains:
            if not is_wildcard(each.name):
                by_name[each.name] = (*by_name.get(each.name, ()), each)
        wildcards = tuple(each for each in domains if is_wildcard(each.name))
        return cls(gateway, server, domains, by_name, wildcards)

    @property
    def name(self) -> GatewayName:
        """What VirtualServices call the gateway."""
        return GatewayName(f"{self.gateway.name.namespace}/{self.gateway.name.name}")

    @property
    def redirects(self) -> bool:
        """Whether plain HTTP is sent to HTTPS."""
        return bool(self.server.tls and self.server.tls.https_redirect)

    def may_meet(self, host: str) -> Iterable[Domain]:
        """The domains that can have a name in common with a host.

        A server may name a thousand domains, and a host that is named in full is at most one.
        """
        if is_wildcard(host):
            return self.domains
        return (*self.by_name.get(host, ()), *self.wildcards)


@dataclass(frozen=True, slots=True, eq=False)
class MergedGateway:
    """Where servers of gateways look up what they do with a domain.

    Attributes:
        name: what it is called.
        port: where it is listened.
        tls: whether connections are secured.
        doors: the servers that it serves.
        scoped: whether domains are looked up among scopes. The gateways alone decide it, so that
            no VirtualService ever changes a listener.
        redirected: the domains, by these very names, that a server redirects to HTTPS. One that
            only a single namespace may route is redirected where that routes it (`Binding`).
    """

    name: str
    port: int
    tls: bool
    doors: tuple[GatewayServer, ...]
    scoped: bool
    redirected: frozenset[str] = field(init=False, repr=False)

    @property
    def grpc_web(self) -> bool:
        """Whether browsers are served: as in istiod, the first server of a port says so."""
        return self.doors[0].server.port.protocol is GatewayProtocol.GRPC_WEB

    def __post_init__(self) -> None:
        redirecting = (each for door in self.doors if door.redirects for each in door.domains)
        names = frozenset(domain for only_from, domain in redirecting if only_from is None)
        object.__setattr__(self, "redirected", names)


@dataclass(frozen=True, slots=True, eq=False)
class MergedGateways:
    """All entrances.

    Attributes:
        by_name: them by name.
        by_gateway: those of a gateway.
        errors: what keeps servers from sharing a port.
    """

    by_name: Mapping[str, MergedGateway]
    by_gateway: Mapping[GatewayName, tuple[MergedGateway, ...]]
    errors: tuple[CompileError, ...]

    def updated(self, gateways: Iterable[Gateway]) -> "MergedGateways":
        """The entrances of all gateways; those that are as before are the same values."""
        doors: dict[str, list[GatewayServer]] = defaultdict(list)
        by_port: dict[int, list[GatewayServer]] = defaultdict(list)
        redirected: dict[int, set[Domain]] = defaultdict(set)
        by_gateway: dict[GatewayName, list[MergedGateway]] = {}
        for gateway in sorted(gateways, key=lambda each: (each.name.name, each.name.namespace)):
            for server in gateway.servers:
                door = GatewayServer.of(gateway, server)
                by_gateway.setdefault(door.name, [])
                by_port[server.port.number].append(door)
                if door.redirects:
                    # istiod ignores the whole server.
                    if not redirected[server.port.number].isdisjoint(door.domains):
                        continue
                    redirected[server.port.number].update(door.domains)
                doors[_name(door)].append(door)
        by_name = {name: self._entrance(name, tuple(group)) for name, group in doors.items()}
        for entrance in by_name.values():
            for gateway_name in dict.fromkeys(door.name for door in entrance.doors):
                by_gateway[gateway_name].append(entrance)
        return MergedGateways(
            by_name,
            {name: tuple(group) for name, group in by_gateway.items()},
            tuple(error for group in by_port.values() for error in _conflicts(group)),
        )

    def _entrance(self, name: str, doors: tuple[GatewayServer, ...]) -> MergedGateway:
        known = self.by_name.get(name)
        if known is not None and known.doors == doors:
            return known
        # The key of a scope stands for nothing but itself.
        scoped = not any(is_wildcard(domain) for door in doors for _, domain in door.domains)
        return MergedGateway(name, doors[0].server.port.number, _secured(doors[0]), doors, scoped)


class Binding(NamedTuple):
    """Through which gateway a VirtualService came to a domain of an entrance.

    Attributes:
        position: which of the entrance's servers it met first there.
        gateway: the gateway.
        redirects: whether a server that it met there sends plain HTTP to HTTPS.
    """

    position: int
    gateway: GatewayName
    redirects: bool


def bind(
    service: VirtualService, entrances: MergedGateways, proxy_namespace: str
) -> tuple[Mapping[tuple[str, str], tuple[Binding, ...]], tuple[CompileError, ...]]:
    """Where a VirtualService counts.

    Args:
        service: the object.
        entrances: where traffic enters.
        proxy_namespace: where the gateways' proxies live, who do not see what other namespaces
            keep to themselves.

    Returns:
        By entrance and domain, how it came there; and the gateways that it names and that are not
        there.
    """
    bound: dict[tuple[str, str], dict[GatewayName, Binding]] = defaultdict(dict)
    visible = service.export_to != OWN_NAMESPACE or service.name.namespace == proxy_namespace
    errors = []
    for index, gateway in enumerate(service.gateways):
        if gateway == MESH:
            continue
        found = entrances.by_gateway.get(gateway)
        if found is None:
            errors.append(_unknown(service, index, entrances))
            continue
        for entrance in found if visible else ():
            if not service.applies(gateway, entrance.port):
                continue
            for position, door in enumerate(entrance.doors):
                if door.name == gateway:
                    for domain in _common(service, door):
                        at = bound[entrance.name, domain]
                        first, _, redirects = at.get(gateway, (position, gateway, False))
                        at[gateway] = Binding(first, gateway, redirects or door.redirects)
    return {key: tuple(at.values()) for key, at in bound.items()}, tuple(errors)


def _common(service: VirtualService, door: GatewayServer) -> Iterator[str]:
    namespace = service.name.namespace
    for host in map(str.lower, service.hosts):
        for only_from, domain in door.may_meet(host):
            if only_from in (None, namespace):
                common = narrower(domain, host)
                if common is not None:
                    yield common


def _taken(gateway: Gateway, server: Server) -> Iterator[Domain]:
    for host in server.hosts:
        namespace, slash, domain = host.rpartition("/")
        if namespace == ".":
            namespace = gateway.name.namespace
        yield Domain(namespace if slash and namespace != "*" else None, domain.lower())


def _secured(door: GatewayServer) -> bool:
    return door.server.port.protocol is GatewayProtocol.HTTPS


def _name(door: GatewayServer) -> str:
    port = door.server.port
    if not _secured(door):
        return f"http.{port.number}"
    gateway = door.gateway.name
    return f"https.{port.number}.{port.name}.{gateway.name}.{gateway.namespace}"


def _conflicts(doors: list[GatewayServer]) -> Iterator[CompileError]:
    first = doors[0]
    for door in doors[1:]:
        index = door.gateway.servers.index(door.server)
        path = f"spec.servers[{index}].port"
        number = door.server.port.number
        if _secured(door) != _secured(first):
            yield CompileError(
                door.gateway.name,
                path,
                f"port {number} is {first.server.port.protocol.value} in {first.gateway.name}",
                "give HTTP and HTTPS different ports",
            )
        elif _secured(door):
            others = doors[: doors.index(door)]
            if any(_name(door) == _name(other) for other in others):
                yield CompileError(
                    door.gateway.name,
                    f"{path}.name",
                    f"another server of port {number} is called {door.server.port.name} too",
                    "give each HTTPS server of a gateway its own port name",
                )
            taken = {domain for other in others for _, domain in other.domains}
            for domain in sorted(taken & {domain for _, domain in door.domains}):
                yield CompileError(
                    door.gateway.name,
                    f"spec.servers[{index}].hosts",
                    f"another HTTPS server of port {number} takes {domain} too",
                    "name each domain once: it decides which certificate is shown",
                )


def _unknown(service: VirtualService, index: int, entrances: MergedGateways) -> CompileError:
    known = ", ".join(sorted(entrances.by_gateway)) or "none: there are none"
    return CompileError(
        service.name,
        f"spec.gateways[{index}]",
        f"there is no Gateway {service.gateways[index]}",
        f"define it, or name one of {known}",
    )
