"""Rules about autoscalers: one a workload, on metrics that exist, no faster than Pods start."""

from collections.abc import Iterator
from typing import Final

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.knowledge.metric_declarations import metrics_in_query, names_of_adapter
from tidegate.mesh.lint.knowledge.metric_names import JudgedMetric, MetricVerdict, judge_metric
from tidegate.mesh.lint.kubernetes.services import ConfigMap, PrometheusRule
from tidegate.mesh.lint.kubernetes.view import Autoscaler, KubernetesView, PodTemplate
from tidegate.mesh.lint.kubernetes.workloads import (
    HorizontalPodAutoscaler,
    ScaledObject,
    ScalingBehavior,
)
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

_PROMETHEUS: Final = "prometheus"
_SCALED_KINDS: Final = ("Deployment", "StatefulSet", "ReplicaSet")


@kubernetes_rule(
    "replicas-beside-autoscaler",
    Severity.ERROR,
    "a workload sets replicas and an autoscaler scales it",
    "each kubectl apply sets the replicas back, and ends Pods that are in use",
)
def replicas_beside_autoscaler(view: MeshView) -> Iterator[Finding]:
    """Replicas that two owners set."""
    for template in view.kubernetes.templates:
        autoscalers = view.kubernetes.autoscalers_of(template)
        if template.replicas is not None and template.manifest.object.kind != "Pod" and autoscalers:
            yield Finding(
                template.manifest,
                "spec.replicas",
                f"{autoscalers[0]} scales it too: each apply sets {template.replicas} replicas"
                " again, and ends the others",
                "remove replicas",
            )


@kubernetes_rule(
    "two-autoscalers",
    Severity.ERROR,
    "two autoscalers, such as a ScaledObject and a HorizontalPodAutoscaler, scale one workload",
    "each undoes what the other does",
)
def two_autoscalers(view: MeshView) -> Iterator[Finding]:
    """Workloads that two autoscalers scale."""
    first: dict[tuple[str, str, str], Autoscaler] = {}
    for each in view.kubernetes.autoscalers:
        target = each.object.spec.scale_target_ref
        other = first.setdefault((each.object.namespace, target.kind, target.name), each)
        if other is not each:
            yield Finding(
                each,
                "spec.scaleTargetRef",
                f"{other} scales {target.kind} {target.name} too: each undoes what the other does",
                "keep one; KEDA makes a HorizontalPodAutoscaler of a ScaledObject itself",
            )


@kubernetes_rule(
    "unknown-scale-target",
    Severity.ERROR,
    "an autoscaler scales a workload that the files of its namespace do not define",
    "nothing is scaled",
)
def unknown_scale_target(view: MeshView) -> Iterator[Finding]:
    """Autoscalers without a workload."""
    for each in view.kubernetes.autoscalers:
        namespace, target = each.object.namespace, each.object.spec.scale_target_ref
        known = [
            f"{found.kind} {found.metadata.name}"
            for template in view.kubernetes.templates_in(namespace)
            if (found := template.manifest.object).kind in _SCALED_KINDS
        ]
        if known and view.kubernetes.target_of(namespace, target) is None:
            yield Finding(
                each,
                "spec.scaleTargetRef",
                f"{namespace} has no {target.kind} {target.name}: nothing is scaled",
                f"name one of {', '.join(known[:5])}",
            )


@kubernetes_rule(
    "min-over-max-replicas",
    Severity.ERROR,
    "an autoscaler has more replicas at least than at most",
    "the API server refuses it, or it never scales",
)
def min_over_max_replicas(view: MeshView) -> Iterator[Finding]:
    """Bounds that contradict each other."""
    for each in view.kubernetes.autoscalers:
        found = each.object
        if isinstance(found, ScaledObject):
            field, least, most = (
                "minReplicaCount",
                found.spec.min_replica_count,
                (found.spec.max_replica_count),
            )
        else:
            field, least, most = "minReplicas", found.spec.min_replicas, found.spec.max_replicas
        if least > most:
            yield Finding(
                each,
                f"spec.{field}",
                f"{field} {least} is more than the maximum {most}: it is refused",
                f"write {most} or less, or raise the maximum",
            )


@kubernetes_rule(
    "short-scale-down-window",
    Severity.WARNING,
    "an autoscaler scales down within less time than a Pod takes to start",
    "a short lull ends Pods that the next minute needs, and each loads its model anew",
)
def short_scale_down_window(view: MeshView) -> Iterator[Finding]:
    """Autoscalers that end Pods sooner than they can start others."""
    for each in view.kubernetes.autoscalers:
        template = view.kubernetes.target_of(
            each.object.namespace, each.object.spec.scale_target_ref
        )
        path, behavior = _behavior(each)
        startup_s = 0 if template is None else _startup_s(template)
        if not behavior.never_scales_down and behavior.scale_down_window_s < startup_s:
            yield Finding(
                each,
                f"{path}.scaleDown.stabilizationWindowSeconds",
                f"it scales down after {behavior.scale_down_window_s} s, and a Pod may take"
                f" {startup_s} s to start: a short lull ends Pods that are needed again",
                f"write {startup_s} or more",
            )


@kubernetes_rule(
    "unknown-metric",
    Severity.ERROR,
    "an autoscaler reads a metric that its exporter does not have",
    "the autoscaler has no value, and never scales",
)
def unknown_metric(view: MeshView) -> Iterator[Finding]:
    """Metrics that never have a value."""
    for autoscaler, path, name, judged in _metrics(view.kubernetes):
        if judged.verdict is MetricVerdict.MISSING:
            yield Finding(
                autoscaler,
                path,
                f"{judged.exporter} has no metric {name}: it never has a value, and nothing is"
                " scaled",
                f"write {judged.nearest}" if judged.nearest else "write one that /metrics shows",
            )


@kubernetes_rule(
    "unchecked-metric",
    Severity.NOTE,
    "an autoscaler reads a metric of an exporter that lint does not know",
    "lint cannot tell whether the metric exists",
)
def unchecked_metric(view: MeshView) -> Iterator[Finding]:
    """Metrics that lint cannot judge."""
    for autoscaler, path, name, judged in _metrics(view.kubernetes):
        if judged.verdict is MetricVerdict.UNKNOWN_EXPORTER:
            yield Finding(
                autoscaler,
                path,
                f"no exporter known here has {name}: it is taken as it is",
                "compare it with the exporter's /metrics, or add the PrometheusRule or the"
                " adapter's ConfigMap that defines it",
            )


def _metrics(view: KubernetesView) -> Iterator[tuple[Autoscaler, str, str, JudgedMetric]]:
    """Yields the metrics that autoscalers read, with what is known of each."""
    others = _defined(view)
    for autoscaler in view.autoscalers:
        found = autoscaler.object
        if isinstance(found, HorizontalPodAutoscaler):
            for index, metric in enumerate(found.spec.metrics):
                if metric.named is not None:
                    below, name = metric.named
                    path = f"spec.metrics[{index}].{below}"
                    yield autoscaler, path, name, judge_metric(name, others)
            continue
        for index, trigger in enumerate(found.spec.triggers):
            if trigger.type != _PROMETHEUS:
                continue
            path = f"spec.triggers[{index}].metadata.query"
            for name in sorted(metrics_in_query(trigger.metadata.get("query", ""))):
                yield autoscaler, path, name, judge_metric(name, others)


def _defined(view: KubernetesView) -> set[str]:
    """The names of metrics that recording rules and prometheus-adapter define."""
    found = {
        rule.record
        for each in view.manifests.of(PrometheusRule)
        for group in each.object.spec.groups
        for rule in group.rules
        if rule.record
    }
    for config in view.manifests.of(ConfigMap):
        for text in config.object.data.values():
            found.update(names_of_adapter(text))
    return found | view.manifests.adapted_metrics


def _behavior(autoscaler: Autoscaler) -> tuple[str, ScalingBehavior]:
    """How fast an autoscaler scales, with the path of that."""
    found = autoscaler.object
    if isinstance(found, HorizontalPodAutoscaler):
        return "spec.behavior", found.spec.behavior
    config = found.spec.advanced.horizontal_pod_autoscaler_config
    return "spec.advanced.horizontalPodAutoscalerConfig.behavior", config.behavior


def _startup_s(template: PodTemplate) -> int:
    """The seconds that a Pod may take to start, by its startup probes."""
    probes = (each.startup_probe for _, each in template.containers())
    return max((each.budget_s for each in probes if each is not None), default=0)
