"""Virtual hosts: what an entrance does with the requests for a domain.

Several VirtualServices may speak of one domain at a gateway, as in Istio. Their routes follow each
other in the order in which the objects come, and the catch-alls of all come last. One that came
through two gateways has its routes twice, for its rules may hold at one of them only. An entrance
for which nobody speaks answers 404 (``UNIMPLEMENTED`` to gRPC). One without scopes has a virtual
host without routes for that: Envoy waits for a first virtual host before it listens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from envoy.config.route.v3 import route_components_pb2
from tidegate.mesh.compiler.routes.envoy_routes.destinations import Scope
from tidegate.mesh.compiler.routes.envoy_routes.envoy_routes import routes_of
from tidegate.mesh.compiler.routes.envoy_routes.matches import is_catch_all
from tidegate.mesh.compiler.routes.envoy_routes.route_tables import domain_resources

from tidegate.istio.shapes import GatewayName, HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.gateways.merged_gateways import MergedGateway
from tidegate.mesh.compiler.hosts.upstreams import Target
from tidegate.mesh.resources import Resource

__all__ = ["Bound", "virtual_host"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A VirtualService at an entrance.

    Attributes:
        service: the object.
        gateway: the gateway through which it came there.
        redirects: whether a server that it met there sends plain HTTP to HTTPS.
    """

    service: VirtualService
    gateway: GatewayName
    redirects: bool


def virtual_host(
    entrance: MergedGateway,
    domain: str,
    bound: Iterable[Bound],
    targets: Mapping[HostName, Target],
    errors: list[CompileError],
) -> tuple[Resource, ...]:
    """What an entrance does with a domain.

    Args:
        entrance: where requests come in.
        domain: what they ask for.
        bound: the VirtualServices for it, in order.
        targets: all hosts.
        errors: takes what is found wrong.
    """
    bound = tuple(bound)
    routes = [
        route
        for each in bound
        for route in routes_of(
            each.service, Scope(each.gateway, entrance.port, entrance.tls, targets, errors)
        )
    ]
    host = route_components_pb2.VirtualHost(
        domains=[domain],
        routes=sorted(routes, key=lambda route: is_catch_all(route.match)),
        include_request_attempt_count=True,
    )
    if domain in entrance.redirected or any(each.redirects for each in bound):
        host.require_tls = route_components_pb2.VirtualHost.ALL
    return domain_resources(entrance, domain, host)
