"""Who may call whom: NetworkPolicies, and Istio's policies and telemetry."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tidegate.mesh.lint.kubernetes.shapes import (
    IntOrString,
    KubernetesModel,
    KubernetesObject,
    LabelSelector,
)

__all__ = [
    "AuthorizationPolicy",
    "MeshPolicy",
    "NetworkPolicy",
    "Operation",
    "PeerAuthentication",
    "PolicyPort",
    "Telemetry",
    "TlsMode",
]

TlsMode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class PolicyPort(KubernetesModel):
    """Ports of a NetworkPolicy."""

    port: IntOrString | None = None
    end_port: int | None = None
    protocol: str = "TCP"

    def has(self, number: int, protocol: str) -> bool:
        """Whether a port is among them."""
        if self.protocol != protocol or isinstance(self.port, str):
            return False
        return self.port is None or self.port <= number <= (self.end_port or self.port)


class _PolicyRule(KubernetesModel):
    ports: tuple[PolicyPort, ...] = ()

    def allows(self, number: int, protocol: str) -> bool:
        """Whether it allows a port, to some peer."""
        return not self.ports or any(each.has(number, protocol) for each in self.ports)


class _NetworkPolicySpec(KubernetesModel):
    pod_selector: LabelSelector = Field(default_factory=LabelSelector)
    policy_types: tuple[str, ...] = ()
    ingress: tuple[_PolicyRule, ...] = ()
    egress: tuple[_PolicyRule, ...] = ()


class NetworkPolicy(KubernetesObject):
    """A NetworkPolicy."""

    spec: _NetworkPolicySpec = Field(default_factory=_NetworkPolicySpec)

    @property
    def restricts_egress(self) -> bool:
        """Whether the Pods may send only what it allows."""
        spec = self.spec
        return "Egress" in spec.policy_types or (not spec.policy_types and bool(spec.egress))


class _MeshPolicySpec(KubernetesModel):
    selector: LabelSelector | None = None
    target_refs: tuple[dict[str, Any], ...] = ()
    target_ref: dict[str, Any] | None = None


class MeshPolicy(KubernetesObject):
    """A policy of Istio: for the Pods that it selects, a waypoint, or its whole namespace."""

    spec: _MeshPolicySpec = Field(default_factory=_MeshPolicySpec)

    @property
    def selector(self) -> LabelSelector | None:
        """What selects the Pods that it is for; None where it is for all, or for a waypoint."""
        selector = self.spec.selector
        return None if selector is None or selector.is_empty else selector

    @property
    def is_for_namespace(self) -> bool:
        """Whether it is for all Pods of its namespace."""
        spec = self.spec
        return self.selector is None and not spec.target_refs and spec.target_ref is None


class _Source(KubernetesModel):
    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()


class _From(KubernetesModel):
    source: _Source = Field(default_factory=_Source)


class Operation(KubernetesModel):
    """The requests that a rule of an AuthorizationPolicy is about."""

    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()


class _To(KubernetesModel):
    operation: Operation = Field(default_factory=Operation)


class _AuthorizationRule(KubernetesModel):
    from_: tuple[_From, ...] = Field(default=(), alias="from")
    to: tuple[_To, ...] = ()


class _AuthorizationSpec(_MeshPolicySpec):
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    rules: tuple[_AuthorizationRule, ...] = ()


class AuthorizationPolicy(MeshPolicy):
    """An AuthorizationPolicy of Istio."""

    spec: _AuthorizationSpec = Field(default_factory=_AuthorizationSpec)

    @property
    def denies_all(self) -> bool:
        """Whether it allows no request to any Pod of its namespace."""
        return self.is_for_namespace and self.spec.action == "ALLOW" and not self.spec.rules


class _Mtls(KubernetesModel):
    mode: TlsMode = "UNSET"


class _PeerAuthenticationSpec(_MeshPolicySpec):
    mtls: _Mtls = Field(default_factory=_Mtls)
    port_level_mtls: dict[str, _Mtls] = Field(default_factory=dict)


class PeerAuthentication(MeshPolicy):
    """A PeerAuthentication of Istio."""

    spec: _PeerAuthenticationSpec = Field(default_factory=_PeerAuthenticationSpec)


class _Tracing(KubernetesModel):
    random_sampling_percentage: Annotated[float, Field(ge=0, le=100)] | None = None


class _TelemetrySpec(_MeshPolicySpec):
    tracing: tuple[_Tracing, ...] = ()


class Telemetry(MeshPolicy):
    """A Telemetry of Istio."""

    spec: _TelemetrySpec = Field(default_factory=_TelemetrySpec)
