"""Where an entrance looks up what it does with a domain: among scopes, or in a route configuration.

An entrance whose gateways name every domain in full has a scope for each (SRDS): the key is the
domain, and a route configuration with one virtual host is inside. Envoy finds it by hash and builds
nothing else when it changes, so a weight takes as long in a mesh of a thousand hosts as in one of
ten. Scopes are exact, so an entrance that takes a name with a ``*`` has one route configuration
that virtual hosts complete one by one (VHDS): a weight is one message there too, but Envoy
builds the table of all domains anew.

A domain is made both ways wherever it can be. A listener asks for the way in which it looks domains
up, so the other is sent to nobody, but to an Envoy whose listener was another before its gateway
was edited: open connections are served by the old one until they end, and follow every change.

All listeners of an Envoy share one subscription to scopes, because none of them can ask for its
own. So the key begins with the entrance. Keys are made of headers alone: the entrance tells its
name in one, whatever the client put there, and takes it out again before the request is forwarded.
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
from tidegate.mesh.resources import Resource, ResourceType

__all__ = [
    "DEADLINE_HEADER",
    "ENTRANCE_HEADER",
    "domain_resources",
    "look_up",
    "route_configuration",
]

ENTRANCE_HEADER: Final = "x-tidegate-entrance"
"""The header in which an entrance tells its name to itself; it is set and removed in Envoy."""

DEADLINE_HEADER: Final = "x-tidegate-grpc-timeout"
"""The header that keeps the client's ``grpc-timeout`` where a route's timeout overwrites it; it is
set and removed in Envoy."""

_BODY_BYTES: Final = 1024 * 1024
# The same in all listeners: by name and source Envoy knows that they share a subscription.
_SCOPES: Final = "gateways"
_Extractor: TypeAlias = ScopedRoutes.ScopeKeyBuilder.FragmentBuilder.HeaderValueExtractor


def look_up(manager: HttpConnectionManager, entrance: MergedGateway) -> None:
    """Tells a connection manager where to look up what it does with a request."""
    manager.early_header_mutation_extensions.append(
        extension_pb2.TypedExtensionConfig(
            name="envoy.http.early_header_mutation.header_mutation",
            typed_config=packed(_early_headers(entrance)),
        )
    )
    if not entrance.scoped:
        manager.rds.CopyFrom(Rds(route_config_name=entrance.name, config_source=ADS))
        return
    manager.scoped_routes.CopyFrom(
        ScopedRoutes(
            name=_SCOPES,
            scope_key_builder=ScopedRoutes.ScopeKeyBuilder(
                fragments=[
                    _fragment(_Extractor(name=ENTRANCE_HEADER, index=0)),
                    # gRPC clients put the port into the authority.
                    _fragment(_Extractor(name=":authority", element_separator=":", index=0)),
                ]
            ),
            scoped_rds=ScopedRds(scoped_rds_config_source=ADS),
        )
    )


def route_configuration(entrance: MergedGateway) -> Resource:
    """The route configuration of an entrance, which virtual hosts complete."""
    routes = _route_configuration(entrance.name)
    routes.vhds.config_source.CopyFrom(ADS)
    return Resource.of(ResourceType.ROUTE, entrance.name, routes)


def domain_resources(
    entrance: MergedGateway, domain: str, host: route_components_pb2.VirtualHost
) -> tuple[Resource, ...]:
    """What is found under a domain: a virtual host, and a scope of the same name if it is a key.

    Args:
        entrance: where requests come in.
        domain: what they ask for.
        host: what is done with them; its name is set here.
    """
    name = virtual_host_name(entrance.name, domain)
    # Envoy removes a virtual host by the name inside, which must be that outside.
    host.name = name
    alone = Resource.of(ResourceType.VIRTUAL_HOST, name, host)
    if is_wildcard(domain):
        return (alone,)
    routes = _route_configuration(name)
    routes.virtual_hosts.append(host)
    routes.request_headers_to_remove.append(ENTRANCE_HEADER)
    # As in a route configuration that comes by itself: that clusters are there is seen to by the
    # order in which resources are sent.
    routes.validate_clusters.CopyFrom(BoolValue(value=False))
    scope = scoped_route_pb2.ScopedRouteConfiguration(name=name, route_configuration=routes)
    for part in (entrance.name, domain):
        scope.key.fragments.add(string_key=part)
    return Resource.of(ResourceType.SCOPED_ROUTE, name, scope), alone


def _fragment(extractor: _Extractor) -> ScopedRoutes.ScopeKeyBuilder.FragmentBuilder:
    return ScopedRoutes.ScopeKeyBuilder.FragmentBuilder(header_value_extractor=extractor)


def _early_headers(entrance: MergedGateway) -> header_mutation_pb2.HeaderMutation:
    # Nothing that a client wrote into the headers of Envoy's own is kept.
    mutations = [
        mutation_rules_pb2.HeaderMutation(remove=DEADLINE_HEADER),
        _set(DEADLINE_HEADER, "%REQ(grpc-timeout)%"),
    ]
    if entrance.scoped:
        # A percent sign begins a command to Envoy unless there are two.
        mutations.append(_set(ENTRANCE_HEADER, entrance.name.replace("%", "%%")))
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
        # gRPC clients put the port into the authority.
        ignore_port_in_host_matching=True,
        max_direct_response_body_size_bytes=UInt32Value(value=_BODY_BYTES),
        request_headers_to_remove=[DEADLINE_HEADER],
    )
