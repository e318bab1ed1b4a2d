"""Clusters of a host and their endpoints: a cluster for each port, and for each subset at a port.

A setting that is not in the DestinationRule has Istio's default: no limits, no outlier detection,
``LEAST_REQUEST``, and no panic threshold. Without a panic threshold, requests never go to an
endpoint that is known to be unhealthy, however few are left.
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2

from tidegate.istio.service_entry import Resolution
from tidegate.istio.shapes import SubsetName
from tidegate.mesh.compiler.clusters.connections import connect, max_requests
from tidegate.mesh.compiler.clusters.endpoints import assignment
from tidegate.mesh.compiler.clusters.load_balancing import (
    balance,
    balance_for_grpc,
    contradiction,
)
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.hosts.services import RegisteredPort
from tidegate.mesh.compiler.hosts.upstreams import Upstream
from tidegate.mesh.compiler.naming import cluster_name
from tidegate.mesh.compiler.protobuf import ADS
from tidegate.mesh.compiler.settings import EndpointStates
from tidegate.mesh.resources import ProxyKind, Resource, ResourceType

__all__ = ["contradictions", "host_resources"]

_Cluster: TypeAlias = cluster_pb2.Cluster
_ONE: Final = 1


def host_resources(
    upstream: Upstream, states: EndpointStates
) -> dict[ProxyKind, tuple[Resource, ...]]:
    """The clusters of a host and their endpoints.

    gRPC clients get no cluster of a host whose endpoints are several DNS names: gRPC resolves only
    one.
    """
    envoy: list[Resource] = []
    grpc: list[Resource] = []
    for port, subset in _parts(upstream):
        name = cluster_name(upstream.service.host, port.number, subset)
        endpoints = assignment(upstream, port, subset, states)
        envoy_cluster = _envoy_cluster(name, upstream, port, subset)
        if not upstream.service.resolution.by_dns:
            resource = Resource.of(ResourceType.ENDPOINT, name, endpoints)
            envoy.append(resource)
            grpc.append(resource)
        else:
            envoy_cluster.load_assignment.CopyFrom(endpoints)
        envoy.append(Resource.of(ResourceType.CLUSTER, name, envoy_cluster))
        grpc_cluster = _grpc_cluster(name, upstream, port, subset)
        if upstream.service.resolution.by_dns:
            if len(upstream.endpoints(port, subset)) != _ONE:
                continue
            grpc_cluster.load_assignment.CopyFrom(endpoints)
        grpc.append(Resource.of(ResourceType.CLUSTER, name, grpc_cluster))
    return {ProxyKind.ENVOY: tuple(envoy), ProxyKind.GRPC: tuple(grpc)}


def contradictions(upstream: Upstream) -> Iterator[CompileError]:
    """Contradictions in the rules of a host."""
    for port, subset in _parts(upstream):
        policy = upstream.policy(port.number, subset)
        obstacle = contradiction(policy)
        if obstacle and policy.rule:
            option = policy.annotations.load_balancer
            where = f"subset {subset}" if subset else f"port {port.number}"
            yield CompileError(
                policy.rule,
                "metadata.annotations[tidegate.dev/load-balancer]",
                f"'{option.value if option else ''}' cannot hold beside {obstacle} of {where}",
                "remove one of the two",
            )


def _parts(upstream: Upstream) -> Iterator[tuple[RegisteredPort, SubsetName | None]]:
    for port in upstream.service.ports.values():
        yield port, None
        for subset in upstream.subsets:
            yield port, subset


def _envoy_cluster(
    name: str, upstream: Upstream, port: RegisteredPort, subset: SubsetName | None
) -> _Cluster:
    cluster = _Cluster(name=name)
    cluster.common_lb_config.healthy_panic_threshold.value = 0
    if upstream.service.resolution.by_dns:
        one = len(upstream.endpoints(port, subset)) == _ONE
        logical = upstream.service.resolution is Resolution.DNS_ROUND_ROBIN and one
        # Envoy refuses a LOGICAL_DNS cluster unless it has exactly one name.
        cluster.type = _Cluster.LOGICAL_DNS if logical else _Cluster.STRICT_DNS
        cluster.dns_lookup_family = _Cluster.V4_PREFERRED
        cluster.respect_dns_ttl = True
    else:
        _by_eds(cluster)
    policy = upstream.policy(port.number, subset)
    balance(cluster, policy)
    connect(cluster, policy, http2=port.http2)
    return cluster


def _grpc_cluster(
    name: str, upstream: Upstream, port: RegisteredPort, subset: SubsetName | None
) -> _Cluster:
    """A cluster for gRPC clients (gRFC A27 and those that build on it).

    Clients report their load to the ADS server, which so knows which requests still run.
    """
    cluster = _Cluster(name=name)
    cluster.lrs_server.self.CopyFrom(config_source_pb2.SelfConfigSource())
    if upstream.service.resolution.by_dns:
        cluster.type = _Cluster.LOGICAL_DNS
    else:
        _by_eds(cluster)
    policy = upstream.policy(port.number, subset)
    balance_for_grpc(cluster, policy)
    limit = max_requests(policy)
    if limit:
        cluster.circuit_breakers.thresholds.add().max_requests.value = limit
    return cluster


def _by_eds(cluster: _Cluster) -> None:
    cluster.type = _Cluster.EDS
    cluster.eds_cluster_config.service_name = cluster.name
    cluster.eds_cluster_config.eds_config.CopyFrom(ADS)
