"""How hosts are called: each host with the DestinationRule that holds for it.

istiod looks for the rule in three places: the namespace of the proxy, the namespace of the host,
the root namespace. The first place that has one decides; rules of different places are not mixed.
Several rules for one host in one namespace are taken together if their ``exportTo`` is the same, as
far as they do not contradict each other (istiod lets the older win, and files have no age). Rules
whose ``exportTo`` differs are not: the last of them decides, which is the youngest in istiod, and
here that whose name comes last.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
from tidegate.mesh.compiler.hosts.services import Endpoint, Port, RegisteredService, ServiceRegistry
from tidegate.mesh.compiler.settings import OWN_NAMESPACE, MeshSettings

__all__ = ["ClusterPolicy", "Upstream", "Upstreams", "UpstreamsBuilder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPolicy:
    """How one cluster is called, when everything that is inherited has been inherited.

    Attributes:
        load_balancer: how an endpoint is chosen.
        connection_pool: limits.
        outlier_detection: when an endpoint is left out.
        tls: TLS to the endpoints.
        retry_budget: most retries at a time.
        annotations: of the rule that says all this.
        rule: that rule, if there is one.
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
    """A host and the rule for it; the same value as long as both are the same objects.

    Attributes:
        service: the host.
        rules: the objects that together are its rule; none is no rule.
        subsets: its subsets by name.
    """

    service: RegisteredService
    rules: tuple[DestinationRule, ...]
    subsets: Mapping[SubsetName, Subset]

    def endpoints(self, port: Port, subset: SubsetName | None) -> tuple[Endpoint, ...]:
        """The endpoints of a port, or those of them that a subset selects."""
        if subset is None:
            return port.endpoints
        labels = self.subsets[subset].labels.items()
        return tuple(each for each in port.endpoints if labels <= each.labels.items())

    def policy(self, port: int, subset: SubsetName | None = None) -> ClusterPolicy:
        """How a port of the host, or of a subset of it, is called."""
        rule = next((each for each in self.rules if each.traffic_policy), None)
        base, _ = _at_port(rule.traffic_policy if rule else None, port)
        own = self.subsets[subset].traffic_policy if subset else None
        over, replaces = _at_port(own, port)
        deciding = self.rules[0] if self.rules else None
        return ClusterPolicy(
            load_balancer=_either(base, over, "load_balancer", replaces),
            connection_pool=_either(base, over, "connection_pool", replaces),
            outlier_detection=_either(base, over, "outlier_detection", replaces),
            tls=_either(base, over, "tls", replaces),
            retry_budget=_either(base, over, "retry_budget", False),
            annotations=deciding.annotations if deciding else DestinationRuleAnnotations(),
            rule=deciding.name if deciding else None,
        )

    def hashed_by(
        self, port: int | None, subset: SubsetName | None = None
    ) -> ConsistentHash | None:
        """What a route to the host, or to a subset of it, hashes of a request.

        A port's own settings count only for routes that name the port, as in istiod.

        Args:
            port: the port that the route names, if it names one.
            subset: the subset that it names, if it names one.
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


_PolicyParts: TypeAlias = TrafficPolicy | PortTrafficPolicy | None


def _at_port(policy: TrafficPolicy | None, port: int) -> tuple[_PolicyParts, bool]:
    """The policy for a port, and whether it is one of the port's own.

    A port's own policy inherits nothing of the policy around it.
    """
    if policy is None:
        return None, False
    own = next((each for each in policy.port_level_settings if each.port == port), None)
    return (policy, False) if own is None else (own, True)


def _either(base: _PolicyParts, over: _PolicyParts, part: str, replaces: bool) -> Any:
    """A part of a policy: of the subset if it has it, else of the rule.

    Args:
        base: the policy of the rule.
        over: the policy of the subset.
        part: the field.
        replaces: whether what the subset leaves out is not inherited.
    """
    value = getattr(over, part, None)
    return value if value is not None or replaces else getattr(base, part, None)


@dataclass(frozen=True, slots=True, eq=False)
class Upstreams:
    """All hosts with their rules.

    Attributes:
        by_host: them by the host's name.
        errors: what is wrong with rules.
    """

    by_host: Mapping[HostName, Upstream]
    errors: tuple[CompileError, ...]


class UpstreamsBuilder:
    """Finds the rule of each host, and makes upstreams anew only where something is different."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._inputs: tuple[object, object] = (None, None)
        self._upstreams = Upstreams({}, ())

    def build(
        self, services: ServiceRegistry, rules: Mapping[ObjectName, DestinationRule]
    ) -> Upstreams:
        """The hosts with their rules."""
        if self._inputs[0] is services and self._inputs[1] is rules:
            return self._upstreams
        by_namespace = _Namespaces(rules.values())
        by_host: dict[HostName, Upstream] = {}
        for host, service in services.by_host.items():
            found = self._find(service, by_namespace)
            known = self._upstreams.by_host.get(host)
            if known is not None and known.service is service and known.rules == found:
                by_host[host] = known
            else:
                subsets = {each.name: each for rule in found for each in rule.subsets}
                by_host[host] = Upstream(service, found, subsets)
        self._upstreams = Upstreams(by_host, tuple(by_namespace.contradictions()))
        self._inputs = (services, rules)
        return self._upstreams

    def _find(
        self, service: RegisteredService, rules: "_Namespaces"
    ) -> tuple[DestinationRule, ...]:
        host = service.host
        proxy, root = self._settings.proxy_namespace, self._settings.root_namespace
        own = rules.private(root, host) if proxy == root else rules.all(proxy, host)
        return own or rules.exported(service.source.namespace, host) or rules.exported(root, host)


class _Namespaces:
    """Rules by namespace and host."""

    def __init__(self, rules: Iterable[DestinationRule]) -> None:
        self._rules: dict[tuple[str, HostName], list[DestinationRule]] = defaultdict(list)
        for each in sorted(rules, key=lambda rule: rule.name.name):
            self._rules[each.name.namespace, each.host].append(each)

    def all(self, namespace: str, host: HostName) -> tuple[DestinationRule, ...]:
        """The rule for a host in a namespace for the proxies there; nothing without one."""
        return _last(_merged(self._rules.get((namespace, host), ())))

    def exported(self, namespace: str, host: HostName) -> tuple[DestinationRule, ...]:
        """The rule for a host in a namespace for the proxies elsewhere; nothing without one."""
        rules = self._rules.get((namespace, host), ())
        return _last(_merged(each for each in rules if each.export_to != OWN_NAMESPACE))

    def private(self, namespace: str, host: HostName) -> tuple[DestinationRule, ...]:
        """The rule for a host that a namespace keeps to itself; nothing without one."""
        rules = self._rules.get((namespace, host), ())
        return _last(_merged(each for each in rules if each.export_to == OWN_NAMESPACE))

    def contradictions(self) -> Iterable[CompileError]:
        """Rules for one host in one namespace of which only one can hold."""
        for rules in self._rules.values():
            for index, rule in enumerate(rules):
                for other in rules[:index]:
                    if other.export_to == rule.export_to:
                        yield from _contradictions(rule, other)


_Rules: TypeAlias = tuple[DestinationRule, ...]


def _merged(rules: Iterable[DestinationRule]) -> list[_Rules]:
    """The rules for one host that are taken together, as istiod does it.

    A rule joins those before it that are exported alike, and stands for itself too if the last of
    all is exported otherwise.
    """
    merged: list[_Rules] = []
    for rule in rules:
        alike = [group[0].export_to == rule.export_to for group in merged]
        merged = [
            (*group, rule) if joins else group for group, joins in zip(merged, alike, strict=True)
        ]
        if not alike or not alike[-1]:
            merged.append((rule,))
    return merged


def _last(merged: list[_Rules]) -> _Rules:
    return merged[-1] if merged else ()


def _contradictions(rule: DestinationRule, other: DestinationRule) -> Iterable[CompileError]:
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
