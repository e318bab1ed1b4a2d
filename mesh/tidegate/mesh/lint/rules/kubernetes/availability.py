"""Rules about replicas: what evicts them, and where they run."""

from collections.abc import Iterator
from typing import Final

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.kubernetes.manifests import PlacedManifest
from tidegate.mesh.lint.kubernetes.shapes import share_of
from tidegate.mesh.lint.kubernetes.view import KubernetesView, PodTemplate
from tidegate.mesh.lint.kubernetes.workloads import PodDisruptionBudget
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

_ON_EVERY_NODE: Final = "DaemonSet"


@kubernetes_rule(
    "no-disruption-budget",
    Severity.WARNING,
    "a workload of several replicas has no PodDisruptionBudget",
    "a node drain may end all replicas at once",
)
def no_disruption_budget(view: MeshView) -> Iterator[Finding]:
    """Replicas that may all be evicted together."""
    budgets = list(_budgets(view.kubernetes))
    for template in _replicated(view.kubernetes):
        if not any(template in templates for _, templates in budgets):
            yield Finding(
                template.manifest,
                "spec",
                "no PodDisruptionBudget selects its Pods: draining nodes may end all of them at"
                " once",
                "add one with 'maxUnavailable: 1' and 'unhealthyPodEvictionPolicy: AlwaysAllow'",
            )


@kubernetes_rule(
    "budget-blocks-evictions",
    Severity.ERROR,
    "a PodDisruptionBudget allows no eviction at all",
    "kubectl drain never ends, so no node can be upgraded",
)
def budget_blocks_evictions(view: MeshView) -> Iterator[Finding]:
    """Budgets that forbid every eviction."""
    for budget, templates in _budgets(view.kubernetes):
        spec = budget.object.spec
        whole = sum(view.kubernetes.least_replicas(each) for each in templates)
        if not whole:
            continue
        if spec.max_unavailable is not None:
            field, value = "maxUnavailable", spec.max_unavailable
            # Kubernetes rounds up in both cases.
            allowed = share_of(value, whole, round_up=True)
        elif spec.min_available is not None:
            field, value = "minAvailable", spec.min_available
            kept = share_of(value, whole, round_up=True)
            allowed = None if kept is None else whole - kept
        else:
            continue
        if allowed is not None and allowed <= 0:
            yield Finding(
                budget,
                f"spec.{field}",
                f"{field} {value} allows no eviction of {whole} Pods: kubectl drain never ends",
                "write 'maxUnavailable: 1', and let the workload have two replicas or more",
            )


@kubernetes_rule(
    "unhealthy-pods-block-evictions",
    Severity.NOTE,
    "a PodDisruptionBudget does not let unhealthy Pods be evicted",
    "a Pod that loads its model for ten minutes holds up a node drain for as long",
)
def unhealthy_pods_block_evictions(view: MeshView) -> Iterator[Finding]:
    """Budgets that protect Pods which do not serve."""
    for budget, templates in _budgets(view.kubernetes):
        if templates and budget.object.spec.unhealthy_pod_eviction_policy != "AlwaysAllow":
            yield Finding(
                budget,
                "spec.unhealthyPodEvictionPolicy",
                "a Pod that is not ready yet cannot be evicted while the budget is used up",
                "write 'unhealthyPodEvictionPolicy: AlwaysAllow'",
            )


@kubernetes_rule(
    "no-topology-spread",
    Severity.WARNING,
    "a workload of several replicas has neither topologySpreadConstraints nor podAntiAffinity",
    "the scheduler may put all replicas on one node, which then fails alone",
)
def no_topology_spread(view: MeshView) -> Iterator[Finding]:
    """Replicas that may share a node."""
    for template in _replicated(view.kubernetes):
        spec = template.spec
        if not spec.topology_spread_constraints and not spec.affinity.pod_anti_affinity:
            yield Finding(
                template.manifest,
                template.at("spec.topologySpreadConstraints"),
                "all replicas may run on one node: its failure ends all of them",
                "spread them by kubernetes.io/hostname, with whenUnsatisfiable: ScheduleAnyway",
            )


def _replicated(view: KubernetesView) -> Iterator[PodTemplate]:
    """Yields the workloads that may have several replicas which can be evicted."""
    for template in view.templates:
        kind = template.manifest.object.kind
        if template.keeps_running and kind != _ON_EVERY_NODE and view.may_have_several(template):
            yield template


def _budgets(
    view: KubernetesView,
) -> Iterator[tuple[PlacedManifest[PodDisruptionBudget], list[PodTemplate]]]:
    """Yields each budget with the running workloads that it selects."""
    for budget in view.manifests.of(PodDisruptionBudget):
        selector = budget.object.spec.selector
        selected = [] if selector is None else view.selected(budget.object.namespace, selector)
        yield budget, [each for each in selected if each.keeps_running]
