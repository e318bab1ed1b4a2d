"""Rules about gateways, and about which VirtualServices hold there and in the mesh."""

import dataclasses
import itertools
from collections.abc import Iterator

from tidegate.istio.gateway import Gateway, GatewayProtocol, Server
from tidegate.istio.names import MESH
from tidegate.istio.shapes import GatewayName
from tidegate.istio.virtual_service import HttpMatchRequest, HttpRoute, VirtualService
from tidegate.mesh.compiler.gateways.merged_gateways import Domain, domains_of
from tidegate.mesh.compiler.naming import narrower
from tidegate.mesh.compiler.routes.matches import is_catch_all, route_match
from tidegate.mesh.compiler.settings import OWN_NAMESPACE
from tidegate.mesh.lint.findings import Finding, Severity, rule
from tidegate.mesh.lint.match_coverage import match_covers, matches_of
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []


@rule("unknown-gateway", Severity.ERROR, "a VirtualService is for a gateway that does not exist")
def unknown_gateway(view: MeshView) -> Iterator[Finding]:
    """Gateways that VirtualServices name and that do not exist."""
    for virtual_service in view.objects.virtual_services.values():
        for index, gateway in view.gateways_of(virtual_service):
            if gateway not in view.gateways:
                yield Finding(
                    virtual_service.name,
                    f"spec.gateways[{index}]",
                    f"there is no Gateway {gateway}: its rules are never followed there",
                    f"write one of {', '.join(sorted(view.gateways))}"
                    if view.gateways
                    else "add the Gateway",
                )


@rule(
    "host-not-at-gateway",
    Severity.ERROR,
    "no server of any gateway of a VirtualService takes one of its hosts",
)
def host_not_at_gateway(view: MeshView) -> Iterator[Finding]:
    """Hosts of VirtualServices that no server of their gateways takes."""
    for virtual_service in view.objects.virtual_services.values():
        for index in sorted(_homeless(view, virtual_service)):
            host = virtual_service.hosts[index]
            words = "; ".join(
                f"{gateway} takes {_shown(view, gateway, virtual_service)}"
                for _, gateway in view.gateways_of(virtual_service)
            )
            gateway = next(each for _, each in view.gateways_of(virtual_service))
            yield Finding(
                virtual_service.name,
                f"spec.hosts[{index}]",
                f"{words}: requests for {host} get 404",
                f"add {host} to a server of {gateway}, or name a host that it takes",
            )


@rule("idle-gateway", Severity.WARNING, "a gateway of a VirtualService takes none of its hosts")
def idle_gateway(view: MeshView) -> Iterator[Finding]:
    """Gateways that take no host of a VirtualService, though its other gateways take them."""
    for virtual_service in view.objects.virtual_services.values():
        homeless = _homeless(view, virtual_service)
        for index, gateway in view.gateways_of(virtual_service):
            taken = any(
                _takes(view, gateway, virtual_service, host) for host in virtual_service.hosts
            )
            if (
                gateway in view.gateways
                and not taken
                and len(homeless) < len(virtual_service.hosts)
            ):
                yield Finding(
                    virtual_service.name,
                    f"spec.gateways[{index}]",
                    f"{gateway} takes {_shown(view, gateway, virtual_service)}: the rules for "
                    f"{', '.join(virtual_service.hosts)} are never followed there",
                    "remove it, or add a host to a server of the gateway",
                )


def _homeless(view: MeshView, virtual_service: VirtualService) -> set[int]:
    """The hosts that no gateway of a VirtualService takes; empty if a gateway does not exist."""
    gateways = [gateway for _, gateway in view.gateways_of(virtual_service)]
    if not gateways or any(each not in view.gateways for each in gateways):
        return set()
    return {
        index
        for index, host in enumerate(virtual_service.hosts)
        # Clients inside the mesh can call every host that is defined.
        if not (MESH in virtual_service.gateways and host in view.hosts)
        and not any(_takes(view, each, virtual_service, host) for each in gateways)
    }


def _takes(
    view: MeshView, gateway: GatewayName, virtual_service: VirtualService, host: str
) -> bool:
    return any(
        narrower(domain.lower(), host.lower()) is not None
        for domain in _domains(view, gateway, virtual_service)
    )


def _shown(view: MeshView, gateway: GatewayName, virtual_service: VirtualService) -> str:
    domains = ", ".join(dict.fromkeys(_domains(view, gateway, virtual_service)))
    return domains or f"nothing of the namespace {virtual_service.name.namespace}"


def _domains(
    view: MeshView, gateway: GatewayName, virtual_service: VirtualService
) -> Iterator[str]:
    """The domains that a gateway takes for the VirtualServices of a namespace."""
    found = view.gateways.get(gateway)
    if found is None:
        return
    for server in found.servers:
        for only_from, domain in domains_of(found, server):
            if only_from in (None, virtual_service.name.namespace):
                yield domain


@rule(
    "unknown-virtual-host",
    Severity.WARNING,
    "a VirtualService is for a host that no client can call",
)
def unknown_virtual_host(view: MeshView) -> Iterator[Finding]:
    """Hosts of VirtualServices for the mesh that no object defines."""
    for virtual_service in view.objects.virtual_services.values():
        gateways = [gateway for _, gateway in view.gateways_of(virtual_service)]
        some = any(host in view.hosts for host in virtual_service.hosts)
        for index, host in enumerate(virtual_service.hosts):
            called = host.startswith("*") or host in view.hosts
            # Beside a host of the mesh, a domain of a gateway is for clients of the gateway.
            outside = some and any(_takes(view, each, virtual_service, host) for each in gateways)
            if MESH in virtual_service.gateways and not called and not outside:
                yield Finding(
                    virtual_service.name,
                    f"spec.hosts[{index}]",
                    f"clients inside the mesh cannot find {host}, so its rules are not followed",
                    "define it in a ServiceEntry, correct its name, or name a gateway",
                )


@rule(
    "two-virtual-services",
    Severity.ERROR,
    "two VirtualServices are for one host inside the mesh",
)
def two_virtual_services(view: MeshView) -> Iterator[Finding]:
    """Hosts with several VirtualServices; clients in the mesh follow only one of them."""
    first: dict[str, list[VirtualService]] = {}
    for virtual_service in view.in_order():
        for index, host in enumerate(virtual_service.hosts):
            if MESH not in virtual_service.gateways:
                continue
            others = first.setdefault(host, [])
            other = next((each for each in others if _meet(each, virtual_service)), None)
            others.append(virtual_service)
            if other is not None:
                yield Finding(
                    virtual_service.name,
                    f"spec.hosts[{index}]",
                    f"{other.name} is for {host} inside the mesh too: only gateways merge the "
                    "rules of two objects; inside the mesh one of the two is ignored",
                    "put the rules into one object, the more specific first",
                )


def _meet(one: VirtualService, other: VirtualService) -> bool:
    """Whether a client in some namespace sees both."""
    return one.name.namespace == other.name.namespace or not (
        one.export_to == other.export_to == OWN_NAMESPACE
    )


@rule(
    "order-of-two",
    Severity.WARNING,
    "rules of two VirtualServices for one host of a gateway take each other's requests",
)
def order_of_two(view: MeshView) -> Iterator[Finding]:
    """Rules that a gateway merges in an order that the objects do not show."""
    for one, other in itertools.combinations(view.in_order(), 2):
        both = [
            (host, gateway)
            for host in one.hosts
            for _, gateway in view.gateways_of(one)
            if host in other.hosts
            and gateway in other.gateways
            and all(_takes(view, gateway, each, host) for each in (one, other))
        ]
        found = _contested(one, other) if both else None
        if found is not None:
            (host, gateway), (mine, index) = both[0], found
            yield Finding(
                other.name,
                f"spec.http[{index}]",
                f"{one.name} has spec.http[{mine}] for the same requests to {host} at "
                f"{gateway}: the rules of both objects are merged, on a cluster those of the older "
                "object first, here by name and then namespace",
                "put the two rules into one object, the more specific first",
            )


def _contested(one: VirtualService, other: VirtualService) -> tuple[int, int] | None:
    """The first pair of rules of two VirtualServices whose order matters."""
    for mine, rule_ in enumerate(one.http):
        for index, against in enumerate(other.http):
            if _action(rule_) == _action(against):
                continue
            for first, second in itertools.product(matches_of(rule_), matches_of(against)):
                # Catch-alls of all objects come last, so their order beside other rules is known.
                if _is_catch_all(first) is _is_catch_all(second) and (
                    match_covers(first, second) or match_covers(second, first)
                ):
                    return mine, index
    return None


def _is_catch_all(match: HttpMatchRequest) -> bool:
    return is_catch_all(route_match(match))


def _action(rule_: HttpRoute) -> HttpRoute:
    """A rule without its conditions."""
    return dataclasses.replace(rule_, match=(), name=None)


@rule("two-servers", Severity.WARNING, "two servers of a port take one domain")
def two_servers(view: MeshView) -> Iterator[Finding]:
    """Domains that several servers of a plain port name. The compiler refuses them for HTTPS."""
    first: dict[tuple[tuple[tuple[str, str], ...], int, Domain], tuple[Gateway, Server, int]] = {}
    for gateway in view.objects.gateways.values():
        proxies = tuple(sorted(gateway.selector.items()))
        for index, server in enumerate(gateway.servers):
            if server.port.protocol is GatewayProtocol.HTTPS:
                continue
            for place, (only_from, domain) in enumerate(domains_of(gateway, server)):
                host = server.hosts[place]
                key = (proxies, server.port.number, Domain(only_from, domain.lower()))
                other, before, known = first.setdefault(key, (gateway, server, place))
                if before is server and known == place:
                    continue
                where = "the server" if before is server else str(other.name)
                yield Finding(
                    gateway.name,
                    f"spec.servers[{index}].hosts[{place}]",
                    f"{where} takes {host} at port {server.port.number} too: both are one virtual "
                    "host, which has the rules of the VirtualServices of both",
                    "name each domain once at a port",
                )
