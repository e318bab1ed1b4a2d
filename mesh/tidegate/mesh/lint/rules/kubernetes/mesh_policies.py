"""Rules about what proxies enforce, and what Prometheus can still scrape behind them."""

from collections.abc import Iterator
from typing import Final

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.kubernetes.manifests import PlacedManifest
from tidegate.mesh.lint.kubernetes.policies import (
    AuthorizationPolicy,
    MeshPolicy,
    PeerAuthentication,
    Telemetry,
)
from tidegate.mesh.lint.kubernetes.services import (
    KubernetesService,
    PodMonitor,
    ScrapeEndpoint,
    ServiceMonitor,
)
from tidegate.mesh.lint.kubernetes.shapes import IntOrString, KubernetesObject
from tidegate.mesh.lint.kubernetes.view import KubernetesView, PodTemplate, Proxy
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

_EXCLUDED: Final = "traffic.sidecar.istio.io/excludeInboundPorts"
_INCLUDED: Final = "traffic.sidecar.istio.io/includeInboundPorts"
# Istio's agent and proxy answer here themselves, in plain text.
_OWN_PORTS: Final = range(15000, 15100)


@kubernetes_rule(
    "policy-without-proxy",
    Severity.WARNING,
    "a policy is for Pods that have no sidecar",
    "the sidecar enforces it, so these Pods answer everybody in plain text",
)
def policy_without_proxy(view: MeshView) -> Iterator[Finding]:
    """Pods that a policy only seems to protect."""
    kubernetes = view.kubernetes
    policies: list[PlacedManifest[MeshPolicy]] = [
        *kubernetes.manifests.of(AuthorizationPolicy),
        *kubernetes.manifests.of(PeerAuthentication),
    ]
    for template in kubernetes.templates:
        if kubernetes.proxy_of(template) is not Proxy.NONE or not template.keeps_running:
            continue
        for policy in policies:
            selector = policy.object.selector
            if policy.object.namespace == template.namespace and (
                selector is None or selector.selects(template.labels)
            ):
                yield Finding(
                    template.manifest,
                    template.at("metadata"),
                    f"the Pods have no sidecar, and {policy} is for them: nothing enforces it, and"
                    " they answer everybody",
                    "let the sidecar be injected, or move them to a namespace without policies",
                )
                break


@kubernetes_rule(
    "scrape-through-mtls",
    Severity.ERROR,
    "a monitor scrapes a port of Pods whose sidecar takes mutual TLS only",
    "Prometheus has no certificate of the mesh, so every scrape fails",
)
def scrape_through_mtls(view: MeshView) -> Iterator[Finding]:
    """Metrics that nobody can scrape."""
    kubernetes = view.kubernetes
    told: set[tuple[PlacedManifest[KubernetesObject], str]] = set()
    for monitor, path, endpoint, template, port in _scraped(kubernetes):
        number = template.number_of(port)
        if number is None or number in _OWN_PORTS or endpoint.sends_tls:
            continue
        if (monitor, path) in told:
            continue
        if kubernetes.proxy_of(template) is Proxy.NONE or not _is_captured(template, number):
            continue
        if kubernetes.mutual_tls(template, number) == "STRICT":
            told.add((monitor, path))
            yield Finding(
                monitor,
                path,
                f"it scrapes port {number} of {template}, whose sidecar takes mutual TLS only:"
                " every scrape fails",
                f"annotate its Pods '{_EXCLUDED}: \"{number}\"' and guard the port by a"
                " NetworkPolicy, or scrape Istio's merged metrics at 15020",
            )


@kubernetes_rule(
    "unknown-scrape-port",
    Severity.ERROR,
    "a monitor names a port that the Pods or the Service do not have",
    "Prometheus finds no target, and nothing says so",
)
def unknown_scrape_port(view: MeshView) -> Iterator[Finding]:
    """Monitors without targets."""
    told: set[tuple[PlacedManifest[KubernetesObject], str]] = set()
    for monitor, path, _, template, port in _scraped(view.kubernetes):
        if template.has_port(port) or (monitor, path) in told:
            continue
        told.add((monitor, path))
        yield Finding(
            monitor,
            path,
            f"no container of {template} declares port {port}: Prometheus scrapes nothing there",
            "write a port that its containers declare",
        )
    for service_monitor, path, endpoint, service in _scraped_services(view.kubernetes):
        names = [each.name for each in service.object.spec.ports]
        if endpoint.port and endpoint.port not in names:
            yield Finding(
                service_monitor,
                path,
                f"{service} has no port {endpoint.port}: Prometheus scrapes nothing there",
                f"write one of its ports: {', '.join(names) or 'it has none with a name'}",
            )


@kubernetes_rule(
    "two-for-namespace",
    Severity.WARNING,
    "two PeerAuthentications or Telemetries are for one whole namespace",
    "Istio follows the older one, whichever that is on a cluster",
)
def two_for_namespace(view: MeshView) -> Iterator[Finding]:
    """Objects without effect beside another."""
    classes: tuple[type[MeshPolicy], ...] = (PeerAuthentication, Telemetry)
    for cls in classes:
        first: dict[str, PlacedManifest[MeshPolicy]] = {}
        for each in view.kubernetes.manifests.of(cls):
            if not each.object.is_for_namespace:
                continue
            other = first.setdefault(each.object.namespace, each)
            if other is not each:
                yield Finding(
                    each,
                    "spec",
                    f"{other} is for all Pods of {each.object.namespace} too, and proxies follow"
                    " only the older of both",
                    "make one of both, or give one a selector",
                )


def _scraped(
    view: KubernetesView,
) -> Iterator[
    tuple[PlacedManifest[KubernetesObject], str, ScrapeEndpoint, PodTemplate, IntOrString]
]:
    """Yields the ports that Prometheus scrapes of each Pod template."""
    for monitor in view.manifests.of(PodMonitor):
        spec = monitor.object.spec
        for index, endpoint in enumerate(spec.pod_metrics_endpoints):
            named = endpoint.port or endpoint.port_number or endpoint.target_port
            field = (
                "port" if endpoint.port else "portNumber" if endpoint.port_number else "targetPort"
            )
            if named is None:
                continue
            for template in view.templates:
                spaces = spec.namespace_selector
                inside = spaces.any or template.namespace in (
                    spaces.match_names or (monitor.object.namespace,)
                )
                if inside and spec.selector.selects(template.labels):
                    path = f"spec.podMetricsEndpoints[{index}].{field}"
                    yield monitor, path, endpoint, template, named
    for service_monitor, path, endpoint, service in _scraped_services(view):
        for port in service.object.spec.ports:
            if endpoint.port and port.name == endpoint.port:
                for template in view.pods_of(service):
                    yield service_monitor, path, endpoint, template, port.target


def _scraped_services(
    view: KubernetesView,
) -> Iterator[
    tuple[PlacedManifest[ServiceMonitor], str, ScrapeEndpoint, PlacedManifest[KubernetesService]]
]:
    for monitor in view.manifests.of(ServiceMonitor):
        spec = monitor.object.spec
        spaces = spec.namespace_selector
        for service in view.services:
            inside = spaces.any or service.object.namespace in (
                spaces.match_names or (monitor.object.namespace,)
            )
            if inside and spec.selector.selects(service.object.metadata.labels):
                for index, endpoint in enumerate(spec.endpoints):
                    yield monitor, f"spec.endpoints[{index}].port", endpoint, service


def _is_captured(template: PodTemplate, port: int) -> bool:
    """Whether the sidecar takes the connections to a port."""
    annotations = template.metadata.annotations
    included = annotations.get(_INCLUDED)
    if included is not None and included != "*" and str(port) not in _listed(included):
        return False
    return str(port) not in _listed(annotations.get(_EXCLUDED, ""))


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",")]
