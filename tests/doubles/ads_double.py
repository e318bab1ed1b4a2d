"""Resources for tests of the mesh, and a proxy that sends the xDS requests of a test."""

import asyncio
import contextlib

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, duration_pb2
from google.rpc import status_pb2

from tidegate.mesh.resources import Resource, ResourceKey, ResourceType

CLUSTER, ENDPOINT, SCOPED_ROUTE, LISTENER, ROUTE, VIRTUAL_HOST = ResourceType

_ADS = config_source_pb2.ConfigSource(
    ads=config_source_pb2.AggregatedConfigSource(), resource_api_version="V3"
)
TIMEOUT_S = 10


def xds_bootstrap(ads_port, node):
    """The bootstrap that connects a proxyless gRPC client to a control plane."""
    server = {
        "server_uri": f"127.0.0.1:{ads_port}",
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    return {"xds_servers": [server], "node": {"id": node}}


def packed(message):
    box = any_pb2.Any()
    box.Pack(message)
    return box


def cluster(name, timeout_s=1):
    """A cluster with endpoints over ADS. Another timeout makes another version."""
    http2 = http_protocol_options_pb2.HttpProtocolOptions()
    http2.explicit_http_config.http2_protocol_options.SetInParent()
    message = cluster_pb2.Cluster(
        name=name,
        type="EDS",
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=_ADS),
        connect_timeout=duration_pb2.Duration(seconds=timeout_s),
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(http2)
        },
    )
    return Resource.of(CLUSTER, name, message)


def endpoints(name, *ports):
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    locality = message.endpoints.add()
    locality.locality.zone = "laptop"
    locality.load_balancing_weight.value = 1
    for port in ports:
        address = locality.lb_endpoints.add().endpoint.address.socket_address
        address.address, address.port_value = "127.0.0.1", port
    return Resource.of(ENDPOINT, name, message)


def _http(route):
    return hcm_pb2.HttpConnectionManager(
        stat_prefix="ingress",
        rds=hcm_pb2.Rds(config_source=_ADS, route_config_name=route),
        http_filters=[hcm_pb2.HttpFilter(name="router", typed_config=packed(router_pb2.Router()))],
    )


def listener(name, route, port=0):
    """A listener for Envoy."""
    message = listener_pb2.Listener(name=name)
    address = message.address.socket_address
    address.address, address.port_value = "127.0.0.1", port
    message.filter_chains.add().filters.add(name="http", typed_config=packed(_http(route)))
    return Resource.of(LISTENER, name, message)


def scoped_listener(name, port=0):
    """A listener for Envoy that finds the scope by the authority without its port."""
    builder = hcm_pb2.ScopedRoutes.ScopeKeyBuilder()
    extractor = builder.fragments.add().header_value_extractor
    extractor.name, extractor.element_separator, extractor.index = ":authority", ":", 0
    http = _http("")
    http.scoped_routes.CopyFrom(
        hcm_pb2.ScopedRoutes(
            name="scopes",
            scope_key_builder=builder,
            scoped_rds=hcm_pb2.ScopedRds(scoped_rds_config_source=_ADS),
        )
    )
    message = listener_pb2.Listener(name=name)
    address = message.address.socket_address
    address.address, address.port_value = "127.0.0.1", port
    message.filter_chains.add().filters.add(name="http", typed_config=packed(http))
    return Resource.of(LISTENER, name, message)


def api_listener(name, route):
    """The listener that a proxyless gRPC client dials."""
    message = listener_pb2.Listener(
        name=name, api_listener=api_listener_pb2.ApiListener(api_listener=packed(_http(route)))
    )
    return Resource.of(LISTENER, name, message)


def _host(name, domains, weights):
    host = route_components_pb2.VirtualHost(name=name, domains=domains)
    if weights:
        route = host.routes.add(match=route_components_pb2.RouteMatch(prefix="/"))
        for each, weight in weights.items():
            route.route.weighted_clusters.clusters.add(name=each).weight.value = weight
    return host


def route(name, **weights):
    """A route configuration with its virtual host inside."""
    message = route_pb2.RouteConfiguration(name=name, virtual_hosts=[_host("all", ["*"], weights)])
    return Resource.of(ROUTE, name, message)


def vhds_route(name):
    """A route configuration whose virtual hosts are separate resources (VHDS)."""
    message = route_pb2.RouteConfiguration(name=name, vhds=route_pb2.Vhds(config_source=_ADS))
    return Resource.of(ROUTE, name, message)


def virtual_host(name, **weights):
    """The virtual host ``ROUTE/DOMAIN``."""
    domain = name.rpartition("/")[2]
    return Resource.of(VIRTUAL_HOST, name, _host(name, [domain], weights))


def scope(name, **weights):
    """A scope with its name as its key, and a route configuration inside."""
    routes = route_pb2.RouteConfiguration(name=name, virtual_hosts=[_host("all", ["*"], weights)])
    message = scoped_route_pb2.ScopedRouteConfiguration(name=name, route_configuration=routes)
    message.key.fragments.add(string_key=name)
    return Resource.of(SCOPED_ROUTE, name, message)


def key(resource):
    return resource.key if isinstance(resource, Resource) else ResourceKey(*resource)


class Proxy:
    """Sends the requests of a test, and returns the responses."""

    def __init__(self, channel, *, delta, node="proxy", agent="envoy"):
        self.delta = delta
        self._node = base_pb2.Node(id=node, user_agent_name=agent, user_agent_version="1.40.0")
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        self.call = stub.DeltaAggregatedResources() if delta else stub.StreamAggregatedResources()
        self.nonces = dict.fromkeys(ResourceType, "")
        self.names = {each: [] for each in ResourceType}
        self._probes = 0

    async def send(self, type_, *names, nonce="", error="", unsubscribe=(), known=None, **more):
        """Sends a request; the first one carries the node."""
        common = {"type_url": getattr(type_, "url", type_), "response_nonce": nonce, **more}
        common["node"] = more.get("node", self._node)
        self._node = None
        if error:
            common["error_detail"] = status_pb2.Status(code=13, message=error)
        if self.delta:
            request = discovery_pb2.DeltaDiscoveryRequest(
                resource_names_subscribe=names,
                resource_names_unsubscribe=unsubscribe,
                initial_resource_versions=known or {},
                **common,
            )
        else:
            request = discovery_pb2.DiscoveryRequest(resource_names=names, **common)
            self.names[type_] = names
        await self.call.write(request)

    async def read(self):
        """The next response."""
        async with asyncio.timeout(TIMEOUT_S):
            message = await self.call.read()
        response = Response(message, delta=self.delta)
        self.nonces[response.type] = response.nonce
        return response

    async def ack(self, response, error=""):
        """Acknowledges a response as a well-behaved proxy does."""
        names = () if self.delta else self.names[response.type]
        await self.send(response.type, *names, nonce=response.nonce, error=error)

    async def nack(self, response, error="no good"):
        await self.ack(response, error)

    async def take(self):
        """Reads a response and accepts it."""
        response = await self.read()
        await self.ack(response)
        return response

    async def is_quiet(self, type_=CLUSTER):
        """Whether the next response answers a request that is sent now (delta).

        Args:
            type_: The type of the request. No response of this type, or of a type that it waits
                for, may be in flight.
        """
        self._probes += 1
        name = f"probe-{self._probes}"
        await self.send(type_, name)
        response = await self.read()
        await self.ack(response)
        return response.type is type_ and response.removed == [name] and not response.names

    async def failure(self):
        """Returns the status with which the stream ends."""
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read():
                    pass
            return await self.call.code(), await self.call.details()


class Response:
    """A response of either variant."""

    def __init__(self, message, *, delta):
        self.message = message
        self.nonce = message.nonce
        self.type = next(each for each in ResourceType if each.url == message.type_url)
        self.removed = list(message.removed_resources) if delta else []
        bodies = [each.resource for each in message.resources] if delta else message.resources
        self.bodies = {_name_of(self.type, each.value): each for each in bodies}
        assert len(self.bodies) == len(message.resources), "a name came twice"
        if delta:
            assert [each.name for each in message.resources] == list(self.bodies)
            self.versions = {each.name: each.version for each in message.resources}

    @property
    def names(self):
        return sorted(self.bodies)

    def __repr__(self):
        return f"{self.type.name} {self.names} removed {self.removed}"


_MESSAGES = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
    SCOPED_ROUTE: scoped_route_pb2.ScopedRouteConfiguration,
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
    VIRTUAL_HOST: route_components_pb2.VirtualHost,
}


def _name_of(type_, body):
    message = _MESSAGES[type_].FromString(body)
    return message.cluster_name if type_ is ENDPOINT else message.name
