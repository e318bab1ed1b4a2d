"""Load balancing: how a cluster chooses an endpoint.

``LEAST_REQUEST`` is the default, as in Istio. Two values of an annotation select policies of Envoy
that Istio does not offer. ``full-scan`` compares all endpoints instead of two at random. ``orca``
weighs endpoints by the load that they report in their responses (Envoy's client-side weighted round
robin).
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3 import (
    client_side_weighted_round_robin_pb2,
)
from envoy.extensions.load_balancing_policies.common.v3 import common_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt64Value

from tidegate.istio.annotations import LoadBalancerOption
from tidegate.istio.destination_rule import ConsistentHash, LoadBalancer, SimpleLoadBalancer, Warmup
from tidegate.mesh.compiler.hosts.upstreams import ClusterPolicy
from tidegate.mesh.compiler.protobuf import duration, packed

__all__ = ["balance", "balance_for_grpc", "contradiction"]

_RING_SIZE: Final = 1024
_SLOW_START_RUNTIME_KEY: Final = "tidegate.slow_start.aggression"
_COMPATIBLE: Final = {
    LoadBalancerOption.ORCA: SimpleLoadBalancer.ROUND_ROBIN,
    LoadBalancerOption.FULL_SCAN: SimpleLoadBalancer.LEAST_REQUEST,
}

_Cluster: TypeAlias = cluster_pb2.Cluster
_LegacySlowStart: TypeAlias = cluster_pb2.Cluster.SlowStartConfig


def contradiction(policy: ClusterPolicy) -> str | None:
    """The setting that contradicts the annotation of a policy; None without a contradiction."""
    option, balancer = policy.annotations.load_balancer, policy.load_balancer
    if option is None or balancer is None:
        return None
    if balancer.consistent_hash:
        return "consistentHash"
    simple = balancer.simple or SimpleLoadBalancer.UNSPECIFIED
    if simple in (SimpleLoadBalancer.UNSPECIFIED, _COMPATIBLE[option]):
        return None
    return f"simple: {simple.value}"


def balance(cluster: _Cluster, policy: ClusterPolicy) -> None:
    """Sets the load balancing of a cluster for Envoy."""
    balancer = policy.load_balancer or LoadBalancer()
    warmup = _warmup(balancer)
    option = policy.annotations.load_balancer
    if option is not None:
        _add_policies(cluster, [_by_annotation(option, warmup)])
    elif balancer.consistent_hash:
        _hash(cluster, balancer.consistent_hash)
    elif balancer.simple is SimpleLoadBalancer.RANDOM:
        cluster.lb_policy = _Cluster.RANDOM
    elif balancer.simple is SimpleLoadBalancer.ROUND_ROBIN:
        cluster.lb_policy = _Cluster.ROUND_ROBIN
        if warmup:
            cluster.round_robin_lb_config.slow_start_config.CopyFrom(_legacy_slow_start(warmup))
    else:
        cluster.lb_policy = _Cluster.LEAST_REQUEST
        if warmup:
            cluster.least_request_lb_config.slow_start_config.CopyFrom(_legacy_slow_start(warmup))


def balance_for_grpc(cluster: _Cluster, policy: ClusterPolicy) -> None:
    """Sets the load balancing of a cluster for gRPC clients.

    gRPC supports round robin, ring hash, and ORCA weights (gRFC A42, A52, A58). It refuses a
    cluster with anything else, so everything else becomes round robin.
    """
    hashing = policy.load_balancer and policy.load_balancer.consistent_hash
    if policy.annotations.load_balancer is LoadBalancerOption.ORCA:
        orca = _by_annotation(LoadBalancerOption.ORCA, None)
        _add_policies(cluster, [orca, round_robin_pb2.RoundRobin()])
    elif hashing and not hashing.maglev:
        _hash(cluster, hashing)
    else:
        cluster.lb_policy = _Cluster.ROUND_ROBIN


def _hash(cluster: _Cluster, hashing: ConsistentHash) -> None:
    if hashing.maglev:
        cluster.lb_policy = _Cluster.MAGLEV
        cluster.maglev_lb_config.table_size.value = hashing.maglev.table_size
        return
    ring = hashing.ring_hash.minimum_ring_size if hashing.ring_hash else hashing.minimum_ring_size
    cluster.lb_policy = _Cluster.RING_HASH
    cluster.ring_hash_lb_config.minimum_ring_size.CopyFrom(UInt64Value(value=ring or _RING_SIZE))


def _warmup(balancer: LoadBalancer) -> Warmup | None:
    if balancer.warmup or not balancer.warmup_duration_secs:
        return balancer.warmup
    return Warmup(duration=balancer.warmup_duration_secs)


def _by_annotation(option: LoadBalancerOption, warmup: Warmup | None) -> Message:
    slow_start = _slow_start(warmup) if warmup else None
    policy: Message
    if option is LoadBalancerOption.ORCA:
        policy = client_side_weighted_round_robin_pb2.ClientSideWeightedRoundRobin(
            slow_start_config=slow_start
        )
    else:
        policy = least_request_pb2.LeastRequest(
            selection_method=least_request_pb2.LeastRequest.FULL_SCAN, slow_start_config=slow_start
        )
    return policy


def _add_policies(cluster: _Cluster, policies: list[Message]) -> None:
    for each in policies:
        cluster.load_balancing_policy.policies.add(
            typed_extension_config=extension_pb2.TypedExtensionConfig(
                name=each.DESCRIPTOR.full_name, typed_config=packed(each)
            )
        )


def _slow_start_fields(warmup: Warmup) -> Iterator[tuple[str, Message]]:
    yield "slow_start_window", duration(warmup.duration)
    yield (
        "aggression",
        base_pb2.RuntimeDouble(
            default_value=warmup.aggression, runtime_key=_SLOW_START_RUNTIME_KEY
        ),
    )
    yield "min_weight_percent", percent_pb2.Percent(value=warmup.minimum_percent)


def _legacy_slow_start(warmup: Warmup) -> _LegacySlowStart:
    return _LegacySlowStart(**dict(_slow_start_fields(warmup)))


def _slow_start(warmup: Warmup) -> common_pb2.SlowStartConfig:
    return common_pb2.SlowStartConfig(**dict(_slow_start_fields(warmup)))
