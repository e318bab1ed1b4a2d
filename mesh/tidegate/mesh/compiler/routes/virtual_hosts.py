"""Virtual hosts: what a merged gateway does with the requests for one domain.

Several VirtualServices may route one domain at a gateway, as in Istio. Their routes follow each
other in the order of the objects, and all catch-alls come last. A VirtualService that is bound
through two Gateways has its routes twice, because its rules may hold at one Gateway only.

A merged gateway without VirtualServices answers 404 (``UNIMPLEMENTED`` to gRPC). If it has no
scopes, it gets a virtual host without routes: Envoy listens only once it has a first virtual host.
"""

from collections.abc import Iterable, Mapping

from envoy.config.route.v3 import route_components_pb2

from tidegate.istio.shapes import HostName
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.gateways.bindings import BoundVirtualService
from tidegate.mesh.compiler.gateways.merged_gateways import MergedGateway
from tidegate.mesh.compiler.hosts.upstreams import Upstream
from tidegate.mesh.compiler.routes.destinations import RouteContext
from tidegate.mesh.compiler.routes.envoy_routes import routes_of
from tidegate.mesh.compiler.routes.matches import is_catch_all
from tidegate.mesh.compiler.routes.route_tables import domain_resources
from tidegate.mesh.resources import Resource

__all__ = ["virtual_host"]


def virtual_host(
    merged_gateway: MergedGateway,
    domain: str,
    bound: Iterable[BoundVirtualService],
    upstreams: Mapping[HostName, Upstream],
    errors: list[CompileError],
) -> tuple[Resource, ...]:
    """Makes the virtual host of a domain, and its scope.

    Args:
        merged_gateway: Where requests come in.
        domain: The domain for which they ask.
        bound: The VirtualServices of the domain, in order.
        upstreams: All hosts.
        errors: Takes the errors that are found.
    """
    bound = tuple(bound)
    routes = [
        route
        for each in bound
        for route in routes_of(
            each.virtual_service,
            RouteContext(each.gateway, merged_gateway.port, merged_gateway.tls, upstreams, errors),
        )
    ]
    host = route_components_pb2.VirtualHost(
        domains=[domain],
        routes=sorted(routes, key=lambda route: is_catch_all(route.match)),
        include_request_attempt_count=True,
    )
    if domain in merged_gateway.redirected or any(each.redirects for each in bound):
        host.require_tls = route_components_pb2.VirtualHost.ALL
    return domain_resources(merged_gateway, domain, host)
