"""Short forms of Istio objects for tests, and compiled resources as dictionaries."""

import importlib
import json

from google.protobuf import json_format

from tidegate.mesh.resources import ProxyKind, ResourceKey, ResourceType

# JSON of an Any message needs its type to be imported.
for _module in (
    "filters.http.cors.v3.cors",
    "filters.http.fault.v3.fault",
    "filters.http.grpc_stats.v3.config",
    "filters.http.grpc_web.v3.grpc_web",
    "filters.http.router.v3.router",
    "filters.listener.tls_inspector.v3.tls_inspector",
    "filters.network.http_connection_manager.v3.http_connection_manager",
    "http.early_header_mutation.header_mutation.v3.header_mutation",
    "load_balancing_policies.client_side_weighted_round_robin.v3.client_side_weighted_round_robin",
    "load_balancing_policies.least_request.v3.least_request",
    "load_balancing_policies.round_robin.v3.round_robin",
    "retry.host.previous_hosts.v3.previous_hosts",
    "transport_sockets.tls.v3.tls",
    "upstreams.http.v3.http_protocol_options",
):
    importlib.import_module(f"envoy.extensions.{_module}_pb2")

VISION = "vision.models.svc.cluster.local"
DOMAIN = "vision.example.com"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def text(*objects):
    """Objects as YAML; JSON is a subset of it."""
    return "\n---\n".join(json.dumps(each) for each in objects)


def istio(kind, name, spec, namespace="models", annotations=None):
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {f"tidegate.dev/{key}": val for key, val in (annotations or {}).items()},
        },
        "spec": spec,
    }


def gateway(port, hosts=("*",), protocol="GRPC", name="in", tls=None, namespace="models"):
    server = {
        "port": {"number": port, "name": "in", "protocol": protocol},
        "hosts": list(hosts),
    }
    if tls:
        server["tls"] = tls
    return istio(
        "Gateway", name, {"selector": {"istio": "ingress"}, "servers": [server]}, namespace
    )


def entry(endpoints, host=VISION, port=8500, protocol="GRPC", **spec):
    """A host with endpoints on loopback, as ``{version: port}`` or as Istio's own dictionaries."""
    if isinstance(endpoints, dict):
        endpoints = [
            {"address": "127.0.0.1", "ports": {"main": number}, "labels": {"version": version}}
            for version, number in endpoints.items()
        ]
    spec = {
        "hosts": [host],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": port, "name": "main", "protocol": protocol}],
        "endpoints": endpoints,
    } | spec
    return istio("ServiceEntry", host.split(".")[0], spec)


def rule(policy=None, subsets=("v1", "v2", "v3"), host="vision", annotations=None, **more):
    spec = {
        "host": host,
        "subsets": [
            each if isinstance(each, dict) else {"name": each, "labels": {"version": each}}
            for each in subsets
        ],
    }
    if policy:
        spec["trafficPolicy"] = policy
    return istio("DestinationRule", host.split(".")[0], spec, annotations=annotations, **more)


def virtual(*http, hosts=(DOMAIN,), gateways=("in",), name="vision", annotations=None, **more):
    spec = {"hosts": list(hosts), "gateways": list(gateways), "http": list(http)}
    return istio("VirtualService", name, spec, annotations=annotations, **more)


def everywhere(name="vision", **more):
    """One route to the whole host, without retries."""
    return virtual({"route": [to()], "retries": {"attempts": 0}, **more}, name=name)


def to(subset=None, weight=None, host="vision", **more):
    """One destination of a route."""
    destination = {"host": host} | ({"subset": subset} if subset else {})
    return {"destination": destination} | ({} if weight is None else {"weight": weight}) | more


def body(compiled, kind, name, proxy_kind=ProxyKind.ENVOY):
    """A resource as a dictionary, with the field names of the protos."""
    resource = compiled.resources[proxy_kind][ResourceKey(ResourceType[kind], name)]
    return json_format.MessageToDict(resource.body, preserving_proto_field_name=True)


def names(compiled, kind, proxy_kind=ProxyKind.ENVOY):
    """The names of all resources of a type."""
    return {key.name for key in compiled.resources[proxy_kind] if key.type is ResourceType[kind]}


def cluster(mesh, subset=""):
    """The compiled cluster of a subset, or of the whole host."""
    return body(mesh.compiled, "CLUSTER", f"outbound|8500|{subset}|{VISION}")
