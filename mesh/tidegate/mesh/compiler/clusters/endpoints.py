"""Endpoints: the `ClusterLoadAssignment` of a cluster, with the health of each endpoint.

An endpoint that must get no new requests stays in the assignment and is marked, so that its running
streams can end. Labels are in the metadata: under ``envoy.lb`` as they are, and under ``istio`` as
``workload;namespace;canonical name;canonical revision;cluster``, which telemetry reads.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from envoy.config.core.v3 import base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.wrappers_pb2 import UInt32Value

from tidegate.istio.names import CANONICAL_NAME_LABELS, CANONICAL_REVISION_LABELS
from tidegate.istio.shapes import SubsetName
from tidegate.mesh.compiler.hosts.services import Endpoint, RegisteredPort
from tidegate.mesh.compiler.hosts.upstreams import Upstream
from tidegate.mesh.compiler.naming import cluster_name
from tidegate.mesh.compiler.protobuf import socket_address
from tidegate.mesh.compiler.settings import EndpointState, EndpointStates

__all__ = ["assignment"]

_HEALTH: Final[Mapping[EndpointState, int]] = {
    EndpointState.HEALTHY: health_check_pb2.HEALTHY,
    EndpointState.UNHEALTHY: health_check_pb2.UNHEALTHY,
    EndpointState.DRAINING: health_check_pb2.DRAINING,
}
_GREATEST_TOTAL: Final = 2**32 - 1
_UNKNOWN: Final[int] = health_check_pb2.UNKNOWN


def assignment(
    upstream: Upstream, port: RegisteredPort, subset: SubsetName | None, states: EndpointStates
) -> endpoint_pb2.ClusterLoadAssignment:
    """The endpoints of one cluster."""
    # Two entries may name one endpoint. gRPC clients refuse an assignment with duplicates, and
    # Envoy takes the first.
    first: dict[str, Endpoint] = {}
    for each in upstream.endpoints(port, subset):
        first.setdefault(each.key, each)
    endpoints = tuple(first.values())
    result = endpoint_pb2.ClusterLoadAssignment(
        cluster_name=cluster_name(upstream.service.host, port.number, subset)
    )
    if endpoints:
        weights = _in_32_bits([each.weight for each in endpoints])
        # gRPC clients ignore endpoints that are in no locality with a weight.
        group = result.endpoints.add(
            locality=base_pb2.Locality(),
            load_balancing_weight=UInt32Value(value=sum(weights)),
        )
        group.lb_endpoints.extend(
            _endpoint(each, weight, _health(upstream, each, states))
            for each, weight in zip(endpoints, weights, strict=True)
        )
    return result


def _in_32_bits(weights: Sequence[int]) -> Sequence[int]:
    """The weights, made smaller in proportion if Envoy cannot keep their sum in 32 bits."""
    parts = -(-sum(weights) // (_GREATEST_TOTAL - len(weights)))
    return weights if parts <= 1 else [max(1, weight // parts) for weight in weights]


def _health(upstream: Upstream, endpoint: Endpoint, states: EndpointStates) -> int:
    if upstream.service.resolution.by_dns:
        return _UNKNOWN
    state = states.get(endpoint.key, EndpointState.UNHEALTHY)
    if upstream.service.external and state is not EndpointState.DRAINING:
        # This state was measured for another host at this address, and may be out of date.
        state = EndpointState.HEALTHY
    return _HEALTH[state]


def _endpoint(endpoint: Endpoint, weight: int, health: int) -> endpoint_components_pb2.LbEndpoint:
    return endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(
            address=socket_address(endpoint.address, endpoint.port)
        ),
        health_status=health,
        load_balancing_weight=UInt32Value(value=weight),
        metadata=base_pb2.Metadata(
            filter_metadata={
                "envoy.lb": _struct(endpoint.labels),
                "istio": _struct({"workload": _workload(endpoint)}),
            }
        ),
    )


def _workload(endpoint: Endpoint) -> str:
    name = _first(endpoint.labels, CANONICAL_NAME_LABELS) or endpoint.workload
    revision = _first(endpoint.labels, CANONICAL_REVISION_LABELS)
    return f"{endpoint.workload};{endpoint.namespace};{name};{revision};Kubernetes"


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")


def _struct(values: Mapping[str, str]) -> Struct:
    return Struct(fields={name: Value(string_value=value) for name, value in values.items()})
