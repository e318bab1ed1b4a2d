"""Workloads, and what scales them and keeps them available."""

from typing import Annotated, Literal

from pydantic import Field

from tidegate.mesh.lint.kubernetes.pods import PodSpecification, PodTemplateSpec
from tidegate.mesh.lint.kubernetes.shapes import (
    IntOrString,
    KubernetesModel,
    KubernetesObject,
    LabelSelector,
)

__all__ = [
    "BarePod",
    "CronJob",
    "HorizontalPodAutoscaler",
    "MetricSpec",
    "PodDisruptionBudget",
    "ScaleTarget",
    "ScaledObject",
    "ScalingBehavior",
    "WorkloadResource",
]

_DEFAULT_WINDOW_S = 300
_PERIOD_S = 15


class _WorkloadSpec(KubernetesModel):
    replicas: Annotated[int, Field(ge=0)] | None = None
    selector: LabelSelector = Field(default_factory=LabelSelector)
    template: PodTemplateSpec


class WorkloadResource(KubernetesObject):
    """A Deployment, a StatefulSet, a Job, or anything else with a Pod template."""

    spec: _WorkloadSpec


class BarePod(KubernetesObject):
    """A Pod."""

    spec: PodSpecification


class _JobSpec(KubernetesModel):
    template: PodTemplateSpec


class _JobTemplate(KubernetesModel):
    spec: _JobSpec


class _CronJobSpec(KubernetesModel):
    job_template: _JobTemplate


class CronJob(KubernetesObject):
    """A CronJob."""

    spec: _CronJobSpec


class _BudgetSpec(KubernetesModel):
    selector: LabelSelector | None = None
    min_available: IntOrString | None = None
    max_unavailable: IntOrString | None = None
    unhealthy_pod_eviction_policy: Literal["IfHealthyBudget", "AlwaysAllow"] = "IfHealthyBudget"


class PodDisruptionBudget(KubernetesObject):
    """A PodDisruptionBudget."""

    spec: _BudgetSpec


class ScaleTarget(KubernetesModel):
    """The workload that an autoscaler scales."""

    kind: str = "Deployment"
    name: str


class _MetricName(KubernetesModel):
    name: str


class _NamedMetric(KubernetesModel):
    metric: _MetricName


class _ResourceMetric(KubernetesModel):
    name: str


class MetricSpec(KubernetesModel):
    """A metric of a HorizontalPodAutoscaler."""

    type: str
    resource: _ResourceMetric | None = None
    container_resource: _ResourceMetric | None = None
    pods: _NamedMetric | None = None
    object: _NamedMetric | None = None
    external: _NamedMetric | None = None

    @property
    def named(self) -> tuple[str, str] | None:
        """The path of the metric's name below the metric, and the name; None for a resource."""
        for field in ("pods", "object", "external"):
            found: _NamedMetric | None = getattr(self, field)
            if found is not None:
                return f"{field}.metric.name", found.metric.name
        return None


class _ScalingPolicy(KubernetesModel):
    type: str = "Percent"
    value: int = 100
    period_seconds: int = _PERIOD_S


class _ScalingRules(KubernetesModel):
    stabilization_window_seconds: int | None = None
    policies: tuple[_ScalingPolicy, ...] = ()
    select_policy: str = "Max"


class ScalingBehavior(KubernetesModel):
    """How fast an autoscaler scales."""

    scale_down: _ScalingRules = Field(default_factory=_ScalingRules)

    @property
    def scale_down_window_s(self) -> int:
        """The seconds over which the highest wanted number of replicas counts."""
        window = self.scale_down.stabilization_window_seconds
        return _DEFAULT_WINDOW_S if window is None else window

    @property
    def never_scales_down(self) -> bool:
        """Whether scaling down is switched off."""
        return self.scale_down.select_policy == "Disabled"


class _AutoscalerSpec(KubernetesModel):
    scale_target_ref: ScaleTarget
    min_replicas: int = 1
    max_replicas: int
    metrics: tuple[MetricSpec, ...] = ()
    behavior: ScalingBehavior = Field(default_factory=ScalingBehavior)


class HorizontalPodAutoscaler(KubernetesObject):
    """A HorizontalPodAutoscaler."""

    spec: _AutoscalerSpec


class _Trigger(KubernetesModel):
    type: str
    metadata: dict[str, str] = Field(default_factory=dict)


class _HpaConfig(KubernetesModel):
    behavior: ScalingBehavior = Field(default_factory=ScalingBehavior)


class _Advanced(KubernetesModel):
    horizontal_pod_autoscaler_config: _HpaConfig = Field(default_factory=_HpaConfig)


class _ScaledObjectSpec(KubernetesModel):
    scale_target_ref: ScaleTarget
    min_replica_count: int = 0
    max_replica_count: int = 100
    triggers: tuple[_Trigger, ...] = ()
    advanced: _Advanced = Field(default_factory=_Advanced)


class ScaledObject(KubernetesObject):
    """A ScaledObject of KEDA, which makes a HorizontalPodAutoscaler of it."""

    spec: _ScaledObjectSpec
