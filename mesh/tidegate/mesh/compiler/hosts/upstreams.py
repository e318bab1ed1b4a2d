"""Upstreams: each host with the DestinationRules that hold for it.

istiod looks for rules in three namespaces: that of the proxy, that of the host, and the root
namespace. The first namespace that has one decides; rules of several namespaces are not mixed.

Several rules for one host in one namespace are merged if their ``exportTo`` is the same, as far as
they do not contradict each other (istiod lets the older win, and files have no age). Rules whose
``exportTo`` differs are not merged: the last of them decides. That is the youngest in istiod, and
here the one whose name comes last.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from tidegate.istio.annotations import DestinationRuleAnnotations
from tidegate.istio.destination_rule import (
    ClientTls,
    ConnectionPool,
    ConsistentHash,
    DestinationRule,
    LoadBalancer,
    OutlierDetection,
    PortTrafficPolicy,
    RetryBudget,
    Subset,
    TrafficPolicy,
)
from tidegate.istio.names import ObjectName
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.hosts.services import (
    Endpoint,
    RegisteredPort,
    RegisteredService,
    ServiceRegistry,
    has_labels,
)
from tidegate.mesh.compiler.settings import OWN_NAMESPACE, MeshSettings

__all__ = [
    "ClusterPolicy",
    "PolicyLayer",
    "Upstream",
    "Upstreams",
    "UpstreamsBuilder",
    "deciding_rules",
    "policy_layers",
    "subsets_of",
]

_Rules: TypeAlias = tuple[DestinationRule, ...]


class PolicyLayer(NamedTuple):
    """One traffic policy that holds for a port of a host or subset.

    Attributes:
        rule: The DestinationRule that has it.
        path: Its path there.
        policy: The policy.
    """

    rule: ObjectName
    path: str
    policy: TrafficPolicy | PortTrafficPolicy

    @property
    def is_of_port(self) -> bool:
        """Whether it is a port's own policy."""
        return isinstance(self.policy, PortTrafficPolicy)


def subsets_of(rules: Iterable[DestinationRule]) -> Mapping[SubsetName, Subset]:
    """The subsets that some rules define; the first of a name counts."""
    subsets: dict[SubsetName, Subset] = {}
    for rule in rules:
        for each in rule.subsets:
            subsets.setdefault(each.name, each)
    return subsets


def policy_layers(
    rules: Iterable[DestinationRule], subset: SubsetName | None, port: int | None
) -> tuple[PolicyLayer, ...]:
    """The policies that hold for a port of a host, or of a subset of it, the nearest first.

    A layer inherits from the next layer each part that it leaves out. A port's own policy inherits
    nothing, so it is the last layer.
    """
    layers = _all_layers(rules, subset, port)
    if layers and layers[0].is_of_port:
        return layers[:1]
    return layers


def _all_layers(
    rules: Iterable[DestinationRule], subset: SubsetName | None, port: int | None
) -> tuple[PolicyLayer, ...]:
    """The policy of the subset and that of the host, as far as they exist, each at the port."""
    rules = tuple(rules)
    of_subset = (
        (rule, f"spec.subsets[{index}].trafficPolicy", each.traffic_policy)
        for rule in rules
        for index, each in enumerate(rule.subsets)
        if each.name == subset
    )
    of_host = ((rule, "spec.trafficPolicy", rule.traffic_policy) for rule in rules)
    found = (
        next(of_subset, None),
        next((each for each in of_host if each[2] is not None), None),
    )
    return tuple(
        _at_port(rule.name, path, policy, port)
        for rule, path, policy in filter(None, found)
        if policy is not None
    )


def _at_port(rule: ObjectName, path: str, policy: TrafficPolicy, port: int | None) -> PolicyLayer:
    for index, each in enumerate(policy.port_level_settings):
        if each.port == port:
            return PolicyLayer(rule, f"{path}.portLevelSettings[{index}]", each)
    return PolicyLayer(rule, path, policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPolicy:
    """The traffic policy of one cluster, after inheritance.

    Attributes:
        load_balancer: How Envoy chooses an endpoint.
        connection_pool: Limits of connections and requests.
        outlier_detection: When Envoy ejects an endpoint.
        tls: TLS to the endpoints.
        retry_budget: The most retries at a time.
        annotations: The annotations of the rule.
        rule: The rule, if there is one.
    """

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    retry_budget: RetryBudget | None = None
    annotations: DestinationRuleAnnotations = field(default_factory=DestinationRuleAnnotations)
    rule: ObjectName | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Upstream:
    """A host with its rules; the same value as long as both are the same objects.

    Attributes:
        service: The host.
        rules: The DestinationRules that are merged for it; empty without a rule.
        subsets: Its subsets by name.
    """

    service: RegisteredService
    rules: _Rules
    subsets: Mapping[SubsetName, Subset]

    def endpoints(self, port: RegisteredPort, subset: SubsetName | None) -> tuple[Endpoint, ...]:
        """The endpoints of a port, or those of them that a subset selects."""
        if subset is None:
            return port.endpoints
        wanted = self.subsets[subset].labels
        return tuple(each for each in port.endpoints if has_labels(each.labels, wanted))

    def policy(self, port: int, subset: SubsetName | None = None) -> ClusterPolicy:
        """The traffic policy of a port of the host, or of a subset of it."""
        layers = policy_layers(self.rules, subset, port)
        rule = self.rules[0] if self.rules else None
        return ClusterPolicy(
            load_balancer=_nearest(layers, "load_balancer"),
            connection_pool=_nearest(layers, "connection_pool"),
            outlier_detection=_nearest(layers, "outlier_detection"),
            tls=_nearest(layers, "tls"),
            # A port's policy can have no retry budget, so a subset's port has that of the host.
            retry_budget=_nearest(_all_layers(self.rules, subset, port), "retry_budget"),
            annotations=rule.annotations if rule else DestinationRuleAnnotations(),
            rule=rule.name if rule else None,
        )

    def hashed_by(
        self, port: int | None, subset: SubsetName | None = None
    ) -> ConsistentHash | None:
        """The part of a request that a route to the host, or to a subset of it, hashes.

        A port's own settings count only for routes that name the port, as in istiod.

        Args:
            port: The port that the route names, if it names one.
            subset: The subset that it names, if it names one.
        """
        policies = (
            self.subsets[subset].traffic_policy if subset else None,
            next((each.traffic_policy for each in self.rules if each.traffic_policy), None),
        )
        for policy in filter(None, policies):
            own = (each.load_balancer for each in policy.port_level_settings if each.port == port)
            for balancer in (*own, policy.load_balancer):
                if balancer and balancer.consistent_hash:
                    return balancer.consistent_hash
        return None


def _nearest(layers: Iterable[PolicyLayer], part: str) -> Any:
    """A part of a policy, from the nearest layer that has it."""
    parts = (getattr(each.policy, part, None) for each in layers)
    return next((each for each in parts if each is not None), None)


@dataclass(frozen=True, slots=True, eq=False)
class Upstreams:
    """All hosts with their rules.

    Attributes:
        by_host: The upstreams by the name of the host.
        errors: Contradictions between rules.
    """

    by_host: Mapping[HostName, Upstream]
    errors: tuple[CompileError, ...]


class UpstreamsBuilder:
    """Finds the rules of each host; it makes only those upstreams again that changed.

    Args:
        settings: The namespace of the proxies, and the root namespace.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._inputs: tuple[object, object] = (None, None)
        self._upstreams = Upstreams({}, ())

    def build(
        self, registry: ServiceRegistry, rules: Mapping[ObjectName, DestinationRule]
    ) -> Upstreams:
        """The hosts with their rules."""
        if self._inputs[0] is registry and self._inputs[1] is rules:
            return self._upstreams
        by_namespace = _RulesByNamespace(rules.values())
        by_host: dict[HostName, Upstream] = {}
        for host, service in registry.by_host.items():
            found = self._find(service, by_namespace)
            known = self._upstreams.by_host.get(host)
            if known is not None and known.service is service and known.rules == found:
                by_host[host] = known
            else:
                by_host[host] = Upstream(service, found, subsets_of(found))
        self._upstreams = Upstreams(by_host, tuple(by_namespace.contradictions()))
        self._inputs = (registry, rules)
        return self._upstreams

    def _find(self, service: RegisteredService, rules: "_RulesByNamespace") -> _Rules:
        host = service.host
        proxy, root = self._settings.proxy_namespace, self._settings.root_namespace
        own = rules.private(root, host) if proxy == root else rules.all(proxy, host)
        return own or rules.exported(service.source.namespace, host) or rules.exported(root, host)


class _RulesByNamespace:
    """Rules by namespace and host."""

    def __init__(self, rules: Iterable[DestinationRule]) -> None:
        self._rules: dict[tuple[str, HostName], list[DestinationRule]] = defaultdict(list)
        for each in sorted(rules, key=lambda rule: rule.name.name):
            self._rules[each.name.namespace, each.host].append(each)

    def all(self, namespace: str, host: HostName) -> _Rules:
        """The rules for a host that a namespace has for its own proxies."""
        return deciding_rules(self._rules.get((namespace, host), ()))

    def exported(self, namespace: str, host: HostName) -> _Rules:
        """The rules for a host that a namespace has for the proxies of others."""
        rules = self._rules.get((namespace, host), ())
        return deciding_rules(each for each in rules if each.export_to != OWN_NAMESPACE)

    def private(self, namespace: str, host: HostName) -> _Rules:
        """The rules for a host that a namespace keeps to itself."""
        rules = self._rules.get((namespace, host), ())
        return deciding_rules(each for each in rules if each.export_to == OWN_NAMESPACE)

    def contradictions(self) -> Iterator[CompileError]:
        """Rules for one host in one namespace that cannot hold together."""
        for rules in self._rules.values():
            for index, rule in enumerate(rules):
                for other in rules[:index]:
                    if other.export_to == rule.export_to:
                        yield from _contradictions(rule, other)


def deciding_rules(rules: Iterable[DestinationRule]) -> _Rules:
    """The rules for one host that decide, merged as istiod merges them; empty without a rule.

    A rule joins each earlier group with the same ``exportTo``. It begins a group of its own if the
    last group has another ``exportTo``. The last group decides.
    """
    groups: list[_Rules] = []
    for rule in rules:
        alike = [group[0].export_to == rule.export_to for group in groups]
        groups = [
            (*group, rule) if joins else group for group, joins in zip(groups, alike, strict=True)
        ]
        if not alike or not alike[-1]:
            groups.append((rule,))
    return groups[-1] if groups else ()


def _contradictions(rule: DestinationRule, other: DestinationRule) -> Iterator[CompileError]:
    fix = f"write both in one object, or remove it from {other.name}"
    if rule.traffic_policy and other.traffic_policy:
        yield CompileError(
            rule.name, "spec.trafficPolicy", f"{other.name} has one for {rule.host} too", fix
        )
    if rule.annotations != other.annotations:
        yield CompileError(
            rule.name,
            "metadata.annotations",
            f"they differ from those of {other.name}, which is for {rule.host} too",
            fix,
        )
    taken = {each.name for each in other.subsets}
    for index, subset in enumerate(rule.subsets):
        if subset.name in taken:
            yield CompileError(
                rule.name,
                f"spec.subsets[{index}].name",
                f"{other.name} has a subset {subset.name} of {rule.host} too",
                fix,
            )
