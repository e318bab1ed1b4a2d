"""The status of the mesh, as MeshService returns it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import Destination, HttpMatchRequest, HttpRoute, VirtualService
from tidegate.mesh.ads import Distribution, ProxyStatus, Rejection, TypeStatus, XdsVariant
from tidegate.mesh.compiler import EndpointState
from tidegate.mesh.compiler.hosts.services import RegisteredService
from tidegate.mesh.control.api.changes import timestamp, transition_message
from tidegate.mesh.control.controller import Controller
from tidegate.mesh.control.endpoints.health_checks import is_checked
from tidegate.mesh.control.endpoints.topology import SubsetView, Topology
from tidegate.mesh.control.transitions.drainer import RequestsInProgress
from tidegate.mesh.resources import ProxyKind, ResourceType
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["STATES", "ready_subsets", "status_of"]

STATES: Final[Mapping[EndpointState, mesh_pb2.EndpointState.ValueType]] = {
    EndpointState.HEALTHY: mesh_pb2.ENDPOINT_STATE_HEALTHY,
    EndpointState.UNHEALTHY: mesh_pb2.ENDPOINT_STATE_UNHEALTHY,
    EndpointState.DRAINING: mesh_pb2.ENDPOINT_STATE_DRAINING,
}
"""The states of endpoints on the wire."""

_PROXY_KINDS: Final = {
    ProxyKind.ENVOY: mesh_pb2.PROXY_KIND_ENVOY,
    ProxyKind.GRPC: mesh_pb2.PROXY_KIND_GRPC,
}
_VARIANTS: Final = {XdsVariant.DELTA: "delta", XdsVariant.SOTW: "sotw"}


def status_of(
    controller: Controller,
    distribution: Distribution,
    topology: Topology,
    in_progress: RequestsInProgress,
) -> mesh_pb2.GetStatusResponse:
    """Gathers the status of the mesh.

    Args:
        controller: Gives the objects, the endpoints and the changes.
        distribution: Gives the proxies.
        topology: Gives the hosts.
        in_progress: Counts the requests on the clusters that are watched.
    """
    transitions = controller.transitions
    objects = controller.served.objects
    status = mesh_pb2.GetStatusResponse(
        proxies=map(_proxy, distribution.proxies()),
        routes=(
            route for service in objects.virtual_services.values() for route in _routes(service)
        ),
        waiting_transitions=transitions.waiting,
        problems=(
            mesh_pb2.Problem(source=each.source, message=each.message, time=timestamp(each.since))
            for each in controller.problems
        ),
        shifted_files=map(str, controller.shifted.paths),
    )
    running: dict[str, int] = {}
    for service, subsets in topology.hosts(objects):
        host = status.hosts.add(name=service.host, ports=service.ports)
        for each in subsets:
            host.subsets.append(_subset(service, each, controller, in_progress))
            _count(each, in_progress, running)
    for address, known in sorted(controller.endpoints.statuses.items()):
        status.endpoints.add(
            address=address,
            state=STATES[known.state],
            reason=known.reason,
            since=timestamp(known.since),
            requests_in_progress=running.get(address),
        )
    if transitions.history.current is not None:
        status.transition.CopyFrom(transition_message(transitions.history.current))
    if transitions.history.last is not None:
        status.last_transition.CopyFrom(transition_message(transitions.history.last))
    return status


def ready_subsets(controller: Controller, topology: Topology, host: HostName) -> list[str]:
    """The subsets of a host that have an endpoint which takes requests."""
    return [
        str(subset.name)
        for service, subsets in topology.hosts(controller.served.objects)
        if service.host == host
        for subset in subsets
        if subset.name is not None and _healthy(service, subset, controller)[0]
    ]


def _proxy(proxy: ProxyStatus) -> mesh_pb2.Proxy:
    rejections = proxy.rejections
    return mesh_pb2.Proxy(
        node_id=proxy.proxy.node,
        proxy_kind=_PROXY_KINDS[proxy.proxy_kind],
        protocol=_VARIANTS[proxy.variant],
        user_agent=proxy.user_agent,
        connected_at=timestamp(proxy.connected_since),
        synchronized=not rejections and not any(each.pending for each in proxy.types.values()),
        resources=(_resource_state(type_, each) for type_, each in proxy.types.items()),
        rejection=_rejection(rejections[-1]) if rejections else None,
    )


def _resource_state(type_: ResourceType, status: TypeStatus) -> mesh_pb2.ResourceState:
    return mesh_pb2.ResourceState(
        type=type_.value, subscribed=status.subscribed, acknowledged=status.acknowledged
    )


def _rejection(rejection: Rejection) -> mesh_pb2.Rejection:
    return mesh_pb2.Rejection(
        resources=sorted(map(str, rejection.versions)),
        message=rejection.message,
        time=timestamp(rejection.at),
    )


def _subset(
    service: RegisteredService,
    subset: SubsetView,
    controller: Controller,
    in_progress: RequestsInProgress,
) -> mesh_pb2.Subset:
    healthy, unchecked = _healthy(service, subset, controller)
    counts = [in_progress.last_known(cluster) for cluster in subset.clusters]
    known = [each for each in counts if each is not None]
    return mesh_pb2.Subset(
        name=subset.name or "",
        clusters=subset.clusters,
        endpoints=subset.addresses,
        healthy_endpoints=healthy,
        unchecked_endpoints=unchecked,
        requests_in_progress=sum(known) if known else None,
    )


def _healthy(
    service: RegisteredService, subset: SubsetView, controller: Controller
) -> tuple[int, int]:
    """How many endpoints of a subset take requests, and how many of these are not checked."""
    healthy, unchecked = 0, 0
    for address in subset.addresses:
        status = controller.endpoints.statuses.get(address)
        if status is None or status.state is EndpointState.DRAINING:
            continue
        if not (is_checked(service) and status.checked):
            healthy, unchecked = healthy + 1, unchecked + 1
        elif status.state is EndpointState.HEALTHY:
            healthy += 1
    return healthy, unchecked


def _count(subset: SubsetView, in_progress: RequestsInProgress, running: dict[str, int]) -> None:
    """Adds the requests of a subset to the counts by endpoint, cluster by cluster."""
    for cluster in subset.clusters:
        for address in subset.addresses:
            count = in_progress.last_known(cluster, address)
            if count is not None:
                running[address] = running.get(address, 0) + count


def _routes(service: VirtualService) -> Iterator[mesh_pb2.Route]:
    owner = service.annotations.rollout
    for rule in service.http:
        yield mesh_pb2.Route(
            virtual_service=f"{service.name.namespace}/{service.name.name}",
            name=rule.name or "",
            match=" or ".join(map(_condition, rule.match)),
            destinations=_destinations(rule),
            mirrors=_mirrors(rule),
            owner="" if owner is None else str(owner),
        )


def _destinations(rule: HttpRoute) -> Iterable[mesh_pb2.Destination]:
    total = sum(each.weight for each in rule.route)
    for each in rule.route:
        # A single destination gets all requests, whatever its weight.
        share = each.weight / total if total else 1.0
        yield _destination(each.destination, share)


def _mirrors(rule: HttpRoute) -> Iterator[mesh_pb2.Destination]:
    if rule.mirror is not None:
        percentage = 100.0 if rule.mirror_percentage is None else rule.mirror_percentage
        yield _destination(rule.mirror, percentage / 100)
    for each in rule.mirrors:
        yield _destination(each.destination, each.percentage / 100)


def _destination(destination: Destination, share: float) -> mesh_pb2.Destination:
    return mesh_pb2.Destination(host=destination.host, subset=destination.subset or "", share=share)


def _condition(match: HttpMatchRequest) -> str:
    parts = [
        f"{name} {condition}"
        for name, condition in (
            ("path", match.uri),
            ("method", match.method),
            ("authority", match.authority),
            ("scheme", match.scheme),
        )
        if condition is not None
    ]
    parts += [f"{name} {condition}" for name, condition in match.headers.items()]
    parts += [f"not {name} {condition}" for name, condition in match.without_headers.items()]
    parts += [f"query {name} {condition}" for name, condition in match.query_params.items()]
    if match.port is not None:
        parts.append(f"port {match.port}")
    return " and ".join(parts) or "any"
