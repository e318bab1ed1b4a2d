"""Rules about traffic policies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tidegate.istio.destination_rule import (
    DestinationRule,
    OutlierDetection,
    SimpleLoadBalancer,
    TrafficPolicy,
)
from tidegate.istio.shapes import SubsetName
from tidegate.mesh.lint.findings import Finding, Severity, rule
from tidegate.mesh.lint.view import MeshView, Route

__all__: list[str] = []

DEFAULT_MAX_EJECTION_PERCENT = 10
"""The default of Envoy and Istio."""


def _policies(
    rule_: DestinationRule,
) -> Iterator[tuple[str, SubsetName | None, TrafficPolicy]]:
    """The policies of a rule: path, subset and policy."""
    if rule_.traffic_policy is not None:
        yield "spec.trafficPolicy", None, rule_.traffic_policy
    for index, subset in enumerate(rule_.subsets):
        if subset.traffic_policy is not None:
            yield f"spec.subsets[{index}].trafficPolicy", subset.name, subset.traffic_policy


@dataclass(frozen=True, slots=True)
class _Detection:
    """An outlier detection, and the endpoints that it watches.

    Attributes:
        rule: The DestinationRule that has it.
        path: Its path there.
        detection: The outlier detection.
        counts: The number of endpoints of each host or subset that it watches, by name, as far as
            they are known.
    """

    rule: DestinationRule
    path: str
    detection: OutlierDetection
    counts: Mapping[str, int]


def _detections(view: MeshView) -> Iterator[_Detection]:
    """Every outlier detection.

    The detection of a rule watches the host, or each subset that routes name and that has no
    detection of its own.
    """
    for each in view.objects.destination_rules.values():
        own = {
            one.name
            for one in each.subsets
            if one.traffic_policy is not None and one.traffic_policy.outlier_detection is not None
        }
        for path, name, policy in _policies(each):
            watched = _named_subsets(view, each) - own if name is None else {name}
            counts = {
                f"{each.host} {subset}" if subset else each.host: len(endpoints)
                for subset in sorted(watched, key=lambda one: one or "")
                if (endpoints := view.endpoints(each.host, subset)) is not None
            }
            if policy.outlier_detection is not None:
                place = f"{path}.outlierDetection"
                yield _Detection(each, place, policy.outlier_detection, counts)
            for index, port in enumerate(policy.port_level_settings):
                if port.outlier_detection is not None:
                    place = f"{path}.portLevelSettings[{index}].outlierDetection"
                    yield _Detection(each, place, port.outlier_detection, counts)


def _named_subsets(view: MeshView, rule_: DestinationRule) -> set[SubsetName | None]:
    """The subsets of a host that routes name; None stands for the whole host."""
    named = {destination.subset for _, destination, _ in view.sent_to.get(rule_.host, ())}
    return named or {None}


@rule(
    "dead-subset-policy", Severity.WARNING, "a subset has a policy of its own and no route names it"
)
def dead_subset_policy(view: MeshView) -> Iterator[Finding]:
    """Policies of subsets to which no request goes."""
    named = {
        (destination.host, destination.subset)
        for route in view.routes
        for destination in (
            *(each.destination for each in route.rule.route),
            *(each for _, each, _ in route.mirrors()),
        )
    }
    for each in view.objects.destination_rules.values():
        for index, subset in enumerate(each.subsets):
            if subset.traffic_policy is not None and (each.host, subset.name) not in named:
                yield Finding(
                    each.name,
                    f"spec.subsets[{index}].trafficPolicy",
                    f"no route names {subset.name}: its policy holds for no request, even where "
                    "the endpoints are the same",
                    f"name the subset in a route to {each.host}, or move the policy to the rule",
                )


@rule(
    "ejects-nobody",
    Severity.WARNING,
    "outlier detection may eject less than one endpoint, so it ejects none",
)
def ejects_nobody(view: MeshView) -> Iterator[Finding]:
    """Detections whose maxEjectionPercent is less than one endpoint."""
    for each in _detections(view):
        percent = each.detection.max_ejection_percent
        allowed = DEFAULT_MAX_EJECTION_PERCENT if percent is None else percent
        few = {
            whose: count
            for whose, count in each.counts.items()
            if count > 1 and count * allowed // 100 == 0
        }
        if few and not each.rule.annotations.always_eject_one_host:
            words = ", ".join(f"{whose} ({count} endpoints)" for whose, count in few.items())
            yield Finding(
                each.rule.name,
                each.path if percent is None else f"{each.path}.maxEjectionPercent",
                f"{allowed} % of the endpoints of {words} is less than one: an endpoint that "
                "fails is never ejected",
                f"write maxEjectionPercent {-(-100 // min(few.values()))} or more, or annotate "
                "'tidegate.dev/always-eject-one-host: \"true\"'",
            )


@rule(
    "outlier-detection-of-one",
    Severity.WARNING,
    "outlier detection watches a single endpoint",
)
def outlier_detection_of_one(view: MeshView) -> Iterator[Finding]:
    """Detections that eject no endpoint or the only one."""
    for each in _detections(view):
        alone = ", ".join(whose for whose, count in each.counts.items() if count == 1)
        everybody = (
            each.detection.max_ejection_percent == 100
            or each.rule.annotations.always_eject_one_host
        )
        if alone:
            yield Finding(
                each.rule.name,
                each.path,
                f"{alone} has one endpoint: "
                + (
                    "ejecting it leaves none, and requests get 503"
                    if everybody
                    else "it is never ejected"
                ),
                "add endpoints, or remove the detection",
            )


@rule(
    "port-policy-inherits-nothing",
    Severity.WARNING,
    "a port's own policy leaves out what the policy around it says",
)
def port_policy_inherits_nothing(view: MeshView) -> Iterator[Finding]:
    """Parts of a policy that do not hold for a port."""
    parts = {
        "load_balancer": "loadBalancer",
        "connection_pool": "connectionPool",
        "outlier_detection": "outlierDetection",
        "tls": "tls",
    }
    for each in view.objects.destination_rules.values():
        for path, subset, policy in _policies(each):
            lost_of = [name for name in parts if getattr(policy, name) is not None]
            for index, port in enumerate(policy.port_level_settings):
                lost = [parts[name] for name in lost_of if getattr(port, name) is None]
                if lost:
                    yield Finding(
                        each.name,
                        f"{path}.portLevelSettings[{index}]",
                        f"port {port.port} has Istio's defaults for {', '.join(lost)}: a port's "
                        f"policy inherits nothing of {path}",
                        f"repeat {', '.join(lost)} here",
                    )
                if policy.retry_budget is not None:
                    # Without the subset's budget, that of the host holds.
                    now = "none" if subset is None else "that of the whole host, if there is one"
                    yield Finding(
                        each.name,
                        f"{path}.portLevelSettings[{index}]",
                        f"port {port.port} does not have the retryBudget of {path} but {now}: a "
                        "port's policy inherits nothing and can have no retryBudget",
                        "remove the port's policy, or the retryBudget; 'attempts' of the route "
                        "limits retries too",
                    )


@rule(
    "policy-for-unknown-port",
    Severity.WARNING,
    "a policy is for a port that the host does not have",
)
def policy_for_unknown_port(view: MeshView) -> Iterator[Finding]:
    """Policies of ports that hold for no request."""
    for each in view.objects.destination_rules.values():
        host = view.hosts.get(each.host)
        numbers = [port.number for port in host.ports] if host is not None else []
        for path, _, policy in _policies(each):
            for index, port in enumerate(policy.port_level_settings):
                if numbers and port.port not in numbers:
                    yield Finding(
                        each.name,
                        f"{path}.portLevelSettings[{index}].port",
                        f"{each.host} has no port {port.port}: the policy holds for no request",
                        f"write one of {', '.join(map(str, numbers))}: the number that clients "
                        "call, not the one at the endpoints",
                    )


def _in_mesh(view: MeshView) -> Iterator[Route]:
    return (route for route in view.routes if route.for_clients_in_mesh)


@rule(
    "least-request-for-grpc-clients",
    Severity.WARNING,
    "gRPC clients without a proxy have no LEAST_REQUEST",
)
def least_request_for_grpc_clients(view: MeshView) -> Iterator[Finding]:
    """Load balancers that gRPC clients refuse, of hosts that routes for them name."""
    hosts = {each.host for route in _in_mesh(view) for _, each, _ in route.shares()}
    for each in view.objects.destination_rules.values():
        for path, _, policy in _policies(each):
            balancer = policy.load_balancer
            if (
                each.host in hosts
                and balancer is not None
                and balancer.simple is SimpleLoadBalancer.LEAST_REQUEST
            ):
                yield Finding(
                    each.name,
                    f"{path}.loadBalancer.simple",
                    f"on a cluster, gRPC clients that dial xds:///{each.host} refuse it, and all "
                    "their calls fail; here they get ROUND_ROBIN",
                    "leave 'simple' out: proxies use LEAST_REQUEST by default, and gRPC clients "
                    "ROUND_ROBIN",
                )


@rule(
    "ignored-by-grpc-clients",
    Severity.WARNING,
    "gRPC clients without a proxy ignore a part of a route or policy",
)
def ignored_by_grpc_clients(view: MeshView) -> Iterator[Finding]:
    """Parts that gRPC's own xDS support lacks (see its doc/grpc_xds_features.md)."""
    for route in _in_mesh(view):
        rule_ = route.rule
        ignored = {
            "mirror": rule_.mirror is not None,
            "mirrors": bool(rule_.mirrors),
            "rewrite": rule_.rewrite is not None,
            "redirect": rule_.redirect is not None,
            "directResponse": rule_.direct_response is not None,
            "corsPolicy": rule_.cors_policy is not None,
            "headers": bool(rule_.headers.request.set or rule_.headers.request.add),
            "retries.perTryTimeout": bool(rule_.retries and rule_.retries.per_try_timeout),
        }
        for name, present in ignored.items():
            if present:
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.{name}",
                    "gRPC clients that dial xds:/// ignore it; Envoy does not",
                    "let clients call through a gateway, or remove it",
                )
    hosts = {each.host for route in _in_mesh(view) for _, each, _ in route.shares()}
    for each in _detections(view):
        if each.rule.host in hosts and each.detection.consecutive_5xx_errors != 0:
            yield Finding(
                each.rule.name,
                each.path,
                "gRPC clients that dial xds:/// do not count consecutive errors, and eject none",
                "rely on health checks for them",
            )
