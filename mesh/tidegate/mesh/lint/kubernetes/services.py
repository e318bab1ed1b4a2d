"""Services, identities, configuration, and what Prometheus scrapes."""

from typing import Any

from pydantic import Field

from tidegate.mesh.lint.kubernetes.shapes import (
    IntOrString,
    KubernetesModel,
    KubernetesObject,
    LabelSelector,
)

__all__ = [
    "ConfigMap",
    "KubernetesService",
    "Namespace",
    "PodMonitor",
    "PortOfService",
    "PrometheusRule",
    "RoleBinding",
    "ScrapeEndpoint",
    "ServiceAccount",
    "ServiceMonitor",
]


class PortOfService(KubernetesModel):
    """A port of a Service."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str = ""
    target_port: IntOrString | None = None

    @property
    def target(self) -> IntOrString:
        """The port of the Pods: a number, or the name of a container's port."""
        return self.port if self.target_port is None else self.target_port


class _ServiceSpec(KubernetesModel):
    type: str = "ClusterIP"
    selector: dict[str, str] = Field(default_factory=dict)
    ports: tuple[PortOfService, ...] = ()


class KubernetesService(KubernetesObject):
    """A Service."""

    spec: _ServiceSpec = Field(default_factory=_ServiceSpec)


class ServiceAccount(KubernetesObject):
    """A ServiceAccount."""

    automount_service_account_token: bool | None = None


class Namespace(KubernetesObject):
    """A Namespace."""


class ConfigMap(KubernetesObject):
    """A ConfigMap."""

    data: dict[str, str] = Field(default_factory=dict)


class _Subject(KubernetesModel):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class RoleBinding(KubernetesObject):
    """A RoleBinding or ClusterRoleBinding."""

    subjects: tuple[_Subject, ...] = ()


class ScrapeEndpoint(KubernetesModel):
    """A port that Prometheus scrapes."""

    port: str = ""
    port_number: int | None = None
    target_port: IntOrString | None = None
    scheme: str = ""
    tls_config: dict[str, Any] | None = None

    @property
    def sends_tls(self) -> bool:
        """Whether Prometheus scrapes it by TLS."""
        return self.scheme.lower() == "https" or self.tls_config is not None


class _NamespaceSelector(KubernetesModel):
    any: bool = False
    match_names: tuple[str, ...] = ()


class _PodMonitorSpec(KubernetesModel):
    selector: LabelSelector = Field(default_factory=LabelSelector)
    namespace_selector: _NamespaceSelector = Field(default_factory=_NamespaceSelector)
    pod_metrics_endpoints: tuple[ScrapeEndpoint, ...] = ()


class PodMonitor(KubernetesObject):
    """A PodMonitor of the Prometheus operator."""

    spec: _PodMonitorSpec


class _ServiceMonitorSpec(KubernetesModel):
    selector: LabelSelector = Field(default_factory=LabelSelector)
    namespace_selector: _NamespaceSelector = Field(default_factory=_NamespaceSelector)
    endpoints: tuple[ScrapeEndpoint, ...] = ()


class ServiceMonitor(KubernetesObject):
    """A ServiceMonitor of the Prometheus operator."""

    spec: _ServiceMonitorSpec


class _PrometheusRule(KubernetesModel):
    record: str = ""


class _RuleGroup(KubernetesModel):
    rules: tuple[_PrometheusRule, ...] = ()


class _PrometheusRuleSpec(KubernetesModel):
    groups: tuple[_RuleGroup, ...] = ()


class PrometheusRule(KubernetesObject):
    """A PrometheusRule of the Prometheus operator."""

    spec: _PrometheusRuleSpec = Field(default_factory=_PrometheusRuleSpec)
