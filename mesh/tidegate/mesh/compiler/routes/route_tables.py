"""Route tables: where a merged gateway looks up a domain, among scopes or in a route configuration.

**Scopes (SRDS).** A merged gateway whose servers name every domain in full has a scope for each
domain: the key is the domain, and inside is a route configuration with one virtual host. Envoy
finds the scope by hash and rebuilds nothing else when it changes, so a weight change takes as long
in a mesh of a thousand hosts as in one of ten.

**Virtual hosts (VHDS).** Scopes match exactly. So a merged gateway that takes a name with a ``*``
has one route configuration, to which virtual hosts are added one by one. A weight change is one
message there too, but Envoy rebuilds the table of all domains.

Each domain is compiled in both ways where both are possible. A listener subscribes to the way in
which it looks domains up, so no Envoy gets the other way. The exception is an Envoy whose listener
used the other way before its Gateway was edited: open connections stay with the old listener until
they end, and follow every change.

All listeners of an Envoy share one subscription to scopes, because no listener can subscribe to its
own. So the key begins with the name of the merged gateway. Envoy makes keys of headers alone: the
listener writes its merged gateway's name into a header, overwriting what the client sent, and the
route configuration removes it before the request is forwarded.
"""

from typing import Final, TypeAlias

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a generated name
    HttpConnectionManager,
    Rds,
    ScopedRds,
    ScopedRoutes,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from tidegate.mesh.compiler.gateways.merged_gateways import MergedGateway
from tidegate.mesh.compiler.naming import is_wildcard, virtual_host_name
from tidegate.mesh.compiler.protobuf import ADS, packed
from tidegate.mesh.resources import MIRRORED_HEADER, Resource, ResourceType

__all__ = [
    "DEADLINE_HEADER",
    "domain_resources",
    "look_up",
    "route_configuration",
]

_MERGED_GATEWAY_HEADER: Final = "x-tidegate-merged-gateway"
"""The header with the name of the merged gateway. Envoy sets it and removes it."""

DEADLINE_HEADER: Final = "x-tidegate-grpc-timeout"
"""The header that keeps the client's ``grpc-timeout`` where a route's timeout overwrites it. Envoy
sets it and removes it."""

_BODY_BYTES: Final = 1024 * 1024
# All listeners have the same name and source here, so that Envoy shares one subscription.
_SCOPES: Final = "gateways"
_Extractor: TypeAlias = ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor


def look_up(manager: HttpConnectionManager, merged_gateway: MergedGateway) -> None:
    """Sets where a connection manager looks up the routes of a request."""
    manager.early_header_mutation_extensions.append(
        extension_pb2.TypedExtensionConfig(
            name="envoy.http.early_header_mutation.header_mutation",
            typed_config=packed(_early_headers(merged_gateway)),
        )
    )
    if not merged_gateway.scoped:
        manager.rds.CopyFrom(Rds(route_config_name=merged_gateway.name, config_source=ADS))
        return
    manager.scoped_routes.CopyFrom(
        ScopedRoutes(
            name=_SCOPES,
            scope_key_builder=ScopedRoutes.ScopeKeyBuilder(
                fragments=[
                    _fragment(_Extractor(name=_MERGED_GATEWAY_HEADER, index=0)),
                    # gRPC clients write the port into the authority.
                    _fragment(_Extractor(name=":authority", element_separator=":", index=0)),
                ]
            ),
            scoped_rds=ScopedRds(scoped_rds_config_source=ADS),
        )
    )


def route_configuration(merged_gateway: MergedGateway) -> Resource:
    """The route configuration of a merged gateway; its virtual hosts come by VHDS."""
    routes = _route_configuration(merged_gateway.name)
    routes.vhds.config_source.CopyFrom(ADS)
    return Resource.of(ResourceType.ROUTE, merged_gateway.name, routes)


def domain_resources(
    merged_gateway: MergedGateway, domain: str, host: route_components_pb2.VirtualHost
) -> tuple[Resource, ...]:
    """The resources of a domain: a virtual host, and a scope if the domain has no ``*``.

    Args:
        merged_gateway: Where requests come in.
        domain: The domain for which they ask.
        host: The virtual host; its name is set here.
    """
    name = virtual_host_name(merged_gateway.name, domain)
    # Envoy removes a virtual host by its inner name, so it must equal the resource's name.
    host.name = name
    alone = Resource.of(ResourceType.VIRTUAL_HOST, name, host)
    if is_wildcard(domain):
        return (alone,)
    routes = _route_configuration(name)
    routes.virtual_hosts.append(host)
    routes.request_headers_to_remove.append(_MERGED_GATEWAY_HEADER)
    # As in a route configuration that comes by RDS. The order in which resources are sent makes
    # sure that clusters are there.
    routes.validate_clusters.CopyFrom(BoolValue(value=False))
    scope = scoped_route_pb2.ScopedRouteConfiguration(name=name, route_configuration=routes)
    for part in (merged_gateway.name, domain):
        scope.key.fragments.add(string_key=part)
    return Resource.of(ResourceType.SCOPED_ROUTE, name, scope), alone


def _fragment(extractor: _Extractor) -> ScopedRoutes.ScopeKeyBuilder.FragmentBuilder:
    return ScopedRoutes.ScopeKeyBuilder.FragmentBuilder(header_value_extractor=extractor)


def _early_headers(merged_gateway: MergedGateway) -> header_mutation_pb2.HeaderMutation:
    # Values that a client wrote into these headers are overwritten.
    mutations = [
        mutation_rules_pb2.HeaderMutation(remove=DEADLINE_HEADER),
        mutation_rules_pb2.HeaderMutation(remove=MIRRORED_HEADER),
        _set(DEADLINE_HEADER, "%REQ(grpc-timeout)%"),
    ]
    if merged_gateway.scoped:
        # A single percent sign begins a command to Envoy.
        mutations.append(_set(_MERGED_GATEWAY_HEADER, merged_gateway.name.replace("%", "%%")))
    return header_mutation_pb2.HeaderMutation(mutations=mutations)


def _set(name: str, value: str) -> mutation_rules_pb2.HeaderMutation:
    append = base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, value=value),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    return mutation_rules_pb2.HeaderMutation(append=append)


def _route_configuration(name: str) -> route_pb2.RouteConfiguration:
    return route_pb2.RouteConfiguration(
        name=name,
        # gRPC clients write the port into the authority.
        ignore_port_in_host_matching=True,
        max_direct_response_body_size_bytes=UInt32Value(value=_BODY_BYTES),
        request_headers_to_remove=[DEADLINE_HEADER],
    )
