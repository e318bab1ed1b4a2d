"""Rules about labels: what Services, subsets and policies select, and how telemetry names Pods."""

from collections.abc import Iterator
from typing import Final

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.kubernetes.manifests import PlacedManifest
from tidegate.mesh.lint.kubernetes.policies import MeshPolicy, NetworkPolicy
from tidegate.mesh.lint.kubernetes.services import (
    KubernetesService,
    PodMonitor,
)
from tidegate.mesh.lint.kubernetes.shapes import KubernetesObject, LabelSelector
from tidegate.mesh.lint.kubernetes.view import KubernetesView, PodTemplate
from tidegate.mesh.lint.kubernetes.workloads import PodDisruptionBudget, WorkloadResource
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

_NAMES: Final = ("app", "service.istio.io/canonical-name", "app.kubernetes.io/name")
_VERSIONS: Final = ("version", "service.istio.io/canonical-revision", "app.kubernetes.io/version")


@kubernetes_rule(
    "selects-no-pod",
    Severity.ERROR,
    "the selector of a Service, budget, policy or monitor selects no Pod template",
    "a Service without Pods answers 503, and a policy without Pods protects nothing",
)
def selects_no_pod(view: MeshView) -> Iterator[Finding]:
    """Selectors without effect, in namespaces whose Pods are known."""
    for manifest, path, selector in _selectors(view.kubernetes):
        templates = view.kubernetes.templates_in(manifest.object.namespace)
        if not templates or any(selector.selects(each.labels) for each in templates):
            continue
        effect = {
            "Service": "every request to it gets 503",
            "PodDisruptionBudget": "it limits no eviction",
            "PodMonitor": "nothing is scraped",
            "Telemetry": "no proxy follows it",
        }.get(manifest.object.kind, "it protects nothing")
        known = sorted({_described(each) for each in templates})
        yield Finding(
            manifest,
            path,
            f"no Pod template in {manifest.object.namespace} has {selector}: {effect}",
            f"write labels of a Pod template: {'; '.join(known[:3])}",
        )
    for template in view.kubernetes.templates:
        workload = template.manifest.object
        if not isinstance(workload, WorkloadResource) or workload.spec.selector.is_empty:
            continue
        if not workload.spec.selector.selects(template.labels):
            yield Finding(
                template.manifest,
                "spec.selector",
                f"its own Pods have no {workload.spec.selector}: the API server refuses it",
                f"write labels of its Pod template: {_described(template)}",
            )


@kubernetes_rule(
    "service-pins-version",
    Severity.WARNING,
    "the selector of a Service names one of several versions",
    "routes move traffic among the Pods of one Service, so other versions get none",
)
def service_pins_version(view: MeshView) -> Iterator[Finding]:
    """Services that leave out versions."""
    for service in view.kubernetes.services:
        selector = service.object.spec.selector
        key = next((each for each in _VERSIONS if each in selector), None)
        if key is None:
            continue
        wider = LabelSelector(
            matchLabels={name: value for name, value in selector.items() if name not in _VERSIONS}
        )
        if wider.is_empty:
            continue
        others = [
            each
            for each in view.kubernetes.selected(service.object.namespace, wider)
            if key in each.labels and each.labels[key] != selector[key]
        ]
        if others and (
            _has_subsets(view, service)
            or not all(view.kubernetes.services_of(each) for each in others)
        ):
            yield Finding(
                service,
                f"spec.selector[{key}]",
                f"it selects {key}={selector[key]} only: no route to it reaches {others[0]}",
                f"remove {key} from the selector; subsets of a DestinationRule select versions",
            )


@kubernetes_rule(
    "subset-without-pods",
    Severity.WARNING,
    "the labels of a subset match no Pod template that the Service selects",
    "a route to the subset gets 503",
)
def subset_without_pods(view: MeshView) -> Iterator[Finding]:
    """Subsets of Services without Pods."""
    for rule in view.objects.destination_rules.values():
        service = view.kubernetes.service_of_host(rule.host)
        pods = view.kubernetes.pods_of(service) if service is not None else []
        for index, subset in enumerate(rule.subsets):
            labels = LabelSelector(matchLabels=dict(subset.labels))
            if pods and not any(labels.selects(each.labels) for each in pods):
                known = sorted({_described(each) for each in pods})
                yield Finding(
                    rule.name,
                    f"spec.subsets[{index}].labels",
                    f"no Pod template behind {rule.host} has {labels}: a route to {subset.name}"
                    " gets 503",
                    f"write labels of a Pod template: {'; '.join(known[:3])}",
                )


@kubernetes_rule(
    "weight-on-subset-without-pods",
    Severity.ERROR,
    "a route gives requests to a subset that no Pod template matches",
    "these requests get 503",
)
def weight_on_subset_without_pods(view: MeshView) -> Iterator[Finding]:
    """Requests to Services that nothing answers."""
    for route in view.routes:
        for index, destination, share in route.shares():
            service = view.kubernetes.service_of_host(destination.host)
            if service is None or destination.subset is None or not share:
                continue
            subset = view.subset(destination.host, destination.subset)
            pods = view.kubernetes.pods_of(service)
            if subset is None or not pods:
                continue
            labels = LabelSelector(matchLabels=dict(subset.labels))
            if not any(labels.selects(each.labels) for each in pods):
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.route[{index}].destination.subset",
                    f"{share:.0%} of the requests go to {destination.subset}, and no Pod template"
                    f" has {labels}: they get 503",
                    "add the version's Deployment, or correct the subset's labels",
                )


@kubernetes_rule(
    "no-app-or-version-label",
    Severity.WARNING,
    "Pods behind a Service have no label app or version",
    "subsets, metrics and graphs tell versions apart by these labels",
)
def no_app_or_version_label(view: MeshView) -> Iterator[Finding]:
    """Pods that metrics cannot name."""
    for template in view.kubernetes.templates:
        if template.is_gateway or not template.keeps_running:
            continue
        if not view.kubernetes.services_of(template):
            continue
        for wanted in (_NAMES, _VERSIONS):
            if not any(each in template.labels for each in wanted):
                yield Finding(
                    template.manifest,
                    template.labels_path,
                    f"the Pods have no label {wanted[0]}: Istio's metrics name them"
                    f" {'by the workload' if wanted is _NAMES else 'latest'}, and no subset selects"
                    " them by it",
                    f"add {wanted[0]}, and {wanted[2]} with the same value",
                )


@kubernetes_rule(
    "label-schemes-disagree",
    Severity.WARNING,
    "Pods have different values of app and app.kubernetes.io/name, or of the versions",
    "Istio and Kiali read different schemes, so one service shows as two",
)
def label_schemes_disagree(view: MeshView) -> Iterator[Finding]:
    """Pods with two names."""
    for template in view.kubernetes.templates:
        for keys in (_NAMES, _VERSIONS):
            given = {key: template.labels[key] for key in keys if key in template.labels}
            if len(set(given.values())) > 1:
                first, *others = given
                wrong = next(each for each in others if given[each] != given[first])
                yield Finding(
                    template.manifest,
                    f"{template.labels_path}[{wrong}]",
                    f"{first} is {given[first]} and {wrong} is {given[wrong]}: graphs and metrics"
                    " show the Pods under two names",
                    f"give both the same value, such as {given[first]}",
                )


def _selectors(
    view: KubernetesView,
) -> Iterator[tuple[PlacedManifest[KubernetesObject], str, LabelSelector]]:
    """Yields everything that selects Pods of its own namespace, unless it selects all."""
    for service in view.services:
        wanted = service.object.spec.selector
        if wanted:
            yield service, "spec.selector", LabelSelector(matchLabels=wanted)
    for budget in view.manifests.of(PodDisruptionBudget):
        if budget.object.spec.selector is not None and not budget.object.spec.selector.is_empty:
            yield budget, "spec.selector", budget.object.spec.selector
    for network in view.manifests.of(NetworkPolicy):
        if not network.object.spec.pod_selector.is_empty:
            yield network, "spec.podSelector", network.object.spec.pod_selector
    for policy in view.manifests.of(MeshPolicy):
        if policy.object.selector is not None:
            yield policy, "spec.selector", policy.object.selector
    for monitor in view.manifests.of(PodMonitor):
        spaces = monitor.object.spec.namespace_selector
        if not spaces.any and not spaces.match_names and not monitor.object.spec.selector.is_empty:
            yield monitor, "spec.selector", monitor.object.spec.selector


def _described(template: PodTemplate) -> str:
    """The labels by which a template is found, in words."""
    known = [key for key in (*_NAMES[:1], *_VERSIONS[:1]) if key in template.labels]
    shown = known or list(template.labels)[:2]
    return ", ".join(f"{key}={template.labels[key]}" for key in shown) or f"none of {template}"


def _has_subsets(view: MeshView, service: PlacedManifest[KubernetesService]) -> bool:
    """Whether a DestinationRule divides the Pods of a Service."""
    return any(
        rule.subsets and view.kubernetes.service_of_host(rule.host) is service
        for rule in view.objects.destination_rules.values()
    )
