"""Reads all resources of a proxy from istiod, as dictionaries.

    reader = XdsReader("127.0.0.1:15010", "istio-ingress")
    resources = await reader.router()

The reader asks as proxies do: for clusters and listeners, and then for the endpoints and routes
that these name (state of the world).
"""

import asyncio
import contextlib
import importlib
import json
import pkgutil
import re
import sys
from dataclasses import dataclass

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import json_format

from tidegate.mesh.resources import ResourceType

_UNKNOWN_TYPE = re.compile(r"type_url: type\.googleapis\.com/([\w.]+)\.\w+$")

CLUSTER, ENDPOINT, _, LISTENER, ROUTE, VIRTUAL_HOST = ResourceType
MESSAGES = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
    VIRTUAL_HOST: route_components_pb2.VirtualHost,
}
_READ_S = 10.0
_WATCH_S = 60.0


def as_dict(message):
    """A message with the field names of its proto."""
    while True:
        try:
            return json_format.MessageToDict(message, preserving_proto_field_name=True)
        except TypeError as error:
            # JSON of an Any message needs the package of its type to be imported.
            unknown = _UNKNOWN_TYPE.search(str(error))
            if unknown is None or not _import_all(unknown[1]):
                raise


def _import_all(package):
    """Imports the modules of a package of protos; False if it was done before."""
    path = importlib.import_module(package).__path__
    names = [f"{package}.{each.name}" for each in pkgutil.iter_modules(path)]
    new = [each for each in names if each.endswith("_pb2") and each not in sys.modules]
    for each in new:
        importlib.import_module(each)
    return bool(new)


@dataclass(frozen=True)
class XdsResources:
    """The resources of one state.

    Attributes:
        by_type: Resources as dictionaries, by type and name.
    """

    by_type: dict

    def mentions(self, text):
        """Whether a text is somewhere in the resources."""
        return any(text in json.dumps(each) for each in self.by_type.values())


class XdsReader:
    """Reads from an istiod.

    Args:
        address: The address of its discovery service.
        namespace: The namespace of the proxies.
    """

    def __init__(self, channel, namespace):
        self._channel, self._namespace = channel, namespace

    async def router(self):
        """The resources of a gateway; None if they are of several states."""
        async with self._stream(_router_node(self._namespace)) as stream:
            clusters, listeners = await stream.ask({CLUSTER: (), LISTENER: ()})
            endpoints, routes = await stream.ask(
                {ENDPOINT: eds_names(clusters), ROUTE: route_names(listeners)}
            )
            return stream.resources(clusters, endpoints, listeners, routes)

    async def client(self, targets):
        """The resources of a proxyless gRPC client; None if they are of several states."""
        async with self._stream(_client_node(self._namespace)) as stream:
            (listeners,) = await stream.ask({LISTENER: targets})
            (routes,) = await stream.ask({ROUTE: route_names(listeners)})
            (clusters,) = await stream.ask({CLUSTER: cluster_names(routes)})
            (endpoints,) = await stream.ask({ENDPOINT: eds_names(clusters)})
            return stream.resources(clusters, endpoints, listeners, routes)

    @contextlib.asynccontextmanager
    async def watching(self, target):
        """Subscribes to the routes of a target, as a proxyless client does.

        Yields a function that waits for the first push whose JSON has a text.
        """
        async with self._stream(_client_node(self._namespace), within_s=_WATCH_S) as stream:
            (listeners,) = await stream.ask({LISTENER: [target]})
            await stream.ask({ROUTE: route_names(listeners)})
            yield stream.pushed

    @contextlib.asynccontextmanager
    async def _stream(self, node, within_s=_READ_S):
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(
            self._channel
        ).StreamAggregatedResources()
        try:
            async with asyncio.timeout(within_s):
                yield _Stream(call, node)
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(error.details()) from error
        finally:
            call.cancel()


class _Stream:
    def __init__(self, call, node):
        self._call, self._node = call, node
        self._versions = set()

    async def ask(self, names_by_type):
        """Asks for resources of some types, and returns them by name."""
        found = {}
        for kind, names in names_by_type.items():
            if kind in (ENDPOINT, ROUTE) and not names:
                found[kind] = {}
                continue
            request = discovery_pb2.DiscoveryRequest(
                node=self._node, type_url=kind.url, resource_names=names
            )
            await self._call.write(request)
        while found.keys() != names_by_type.keys():
            response = await self._call.read()
            if response is grpc.aio.EOF:
                raise ConnectionError("the stream has ended")
            kind = next((kind for kind in names_by_type if kind.url == response.type_url), None)
            if kind is None:
                raise ConnectionError("a push came between")
            self._versions.add(response.version_info)
            await self._acknowledge(response, names_by_type[kind])
            found[kind] = {}
            for each in response.resources:
                message = MESSAGES[kind].FromString(each.value)
                name = message.cluster_name if kind is ENDPOINT else message.name
                found[kind][name] = as_dict(message)
        return [found[kind] for kind in names_by_type]

    async def pushed(self, text):
        """Waits for a push of routes that has a text, and acknowledges each until then."""
        while True:
            response = await self._call.read()
            if response is grpc.aio.EOF:
                raise ConnectionError("the stream has ended")
            if response.type_url == ROUTE.url:
                routes = [MESSAGES[ROUTE].FromString(each.value) for each in response.resources]
                await self._acknowledge(response, [each.name for each in routes])
                if any(text in json.dumps(as_dict(each)) for each in routes):
                    return

    async def _acknowledge(self, response, names):
        await self._call.write(
            discovery_pb2.DiscoveryRequest(
                type_url=response.type_url,
                resource_names=names,
                version_info=response.version_info,
                response_nonce=response.nonce,
            )
        )

    def resources(self, clusters, endpoints, listeners, routes):
        if len(self._versions) > 1:
            return None
        return XdsResources(
            {CLUSTER: clusters, ENDPOINT: endpoints, LISTENER: listeners, ROUTE: routes}
        )


def eds_names(clusters):
    """The clusters whose endpoints come over ADS."""
    return sorted(name for name, each in clusters.items() if each.get("type") == "EDS")


def route_names(listeners):
    """The route configurations that listeners name."""
    return sorted({each["route_config_name"] for each in _all_at(listeners, "rds")})


def cluster_names(routes):
    """The clusters that the routes of a client name."""
    names = set()
    for action in _all_at(routes, "route"):
        if "cluster" in action:
            names.add(action["cluster"])
        names.update(
            each["name"] for each in action.get("weighted_clusters", {}).get("clusters", ())
        )
    return sorted(names)


def _all_at(value, key):
    """All values under a key, at any depth."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == key and isinstance(each, dict):
                yield each
            yield from _all_at(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from _all_at(each, key)


def _router_node(namespace):
    return _node(
        f"router~10.0.0.1~gateway.{namespace}~{namespace}.svc.cluster.local",
        {
            "NAMESPACE": namespace,
            "CLUSTER_ID": "Kubernetes",
            "NAME": "gateway",
            "INSTANCE_IPS": "10.0.0.1",
            "LABELS": {"istio": "ingress"},
        },
    )


def _client_node(namespace):
    return _node(
        f"sidecar~10.0.0.2~client.{namespace}~{namespace}.svc.cluster.local",
        {
            "GENERATOR": "grpc",
            "NAMESPACE": namespace,
            "CLUSTER_ID": "Kubernetes",
            "NAME": "client",
            "INSTANCE_IPS": "10.0.0.2",
        },
    )


def _node(node_id, metadata):
    node = base_pb2.Node(id=node_id, user_agent_name="gRPC reader")
    node.metadata.update(metadata)
    return node
