"""Rules about NetworkPolicies: ports that Pods have, and what a sidecar itself must reach."""

from collections.abc import Iterator
from typing import Final

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.kubernetes.manifests import PlacedManifest
from tidegate.mesh.lint.kubernetes.policies import (
    AuthorizationPolicy,
    NetworkPolicy,
    PeerAuthentication,
)
from tidegate.mesh.lint.kubernetes.view import ROOT_NAMESPACE, KubernetesView, PodTemplate, Proxy
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

_ISTIOD: Final = 15012
_DNS: Final = 53


@kubernetes_rule(
    "unknown-policy-port",
    Severity.ERROR,
    "a NetworkPolicy lets in requests to a port that no Pod of it has",
    "the port that is meant stays closed; a number that is not declared may still be open",
    lesser=Severity.WARNING,
)
def unknown_policy_port(view: MeshView) -> Iterator[Finding]:
    """Ports that stay closed."""
    for policy in view.kubernetes.manifests.of(NetworkPolicy):
        spec = policy.object.spec
        templates = view.kubernetes.selected(policy.object.namespace, spec.pod_selector)
        if not templates or any(each.is_gateway for each in templates):
            continue
        for index, rule in enumerate(spec.ingress):
            for number, each in enumerate(rule.ports):
                if each.port is None or each.end_port is not None:
                    continue
                if not any(template.has_port(each.port) for template in templates):
                    yield Finding(
                        policy,
                        f"spec.ingress[{index}].ports[{number}].port",
                        f"no Pod that it selects declares port {each.port}: the rule opens nothing",
                        f"write one that they declare ({_ports_of(templates) or 'none yet'})",
                        is_lesser=isinstance(each.port, int),
                    )


@kubernetes_rule(
    "egress-without-istiod",
    Severity.ERROR,
    "NetworkPolicies restrict egress of Pods with a sidecar and leave out istiod's port 15012",
    "the sidecar gets no certificate and no routes, so the Pod never becomes ready",
)
def egress_without_istiod(view: MeshView) -> Iterator[Finding]:
    """Sidecars that cannot reach istiod."""
    for template, policies in _restricted(view.kubernetes):
        if _has_sidecar(template, view.kubernetes) and not _allowed(policies, _ISTIOD, "TCP"):
            yield Finding(
                policies[0],
                "spec.egress",
                f"the sidecars of {template} cannot reach istiod at {_ISTIOD}: the Pods never"
                " become ready",
                f"allow TCP {_ISTIOD} to namespace {ROOT_NAMESPACE}",
            )


@kubernetes_rule(
    "egress-without-dns",
    Severity.ERROR,
    "NetworkPolicies restrict egress and leave out DNS",
    "the Pods cannot find any host by its name",
)
def egress_without_dns(view: MeshView) -> Iterator[Finding]:
    """Pods that resolve no name."""
    for template, policies in _restricted(view.kubernetes):
        if not _allowed(policies, _DNS, "UDP"):
            yield Finding(
                policies[0],
                "spec.egress",
                f"the Pods of {template} cannot reach DNS at UDP {_DNS}: every call by a host's"
                " name fails",
                f"allow UDP and TCP {_DNS} to the namespace of the cluster's DNS, kube-system",
            )


def _restricted(
    view: KubernetesView,
) -> Iterator[tuple[PodTemplate, list[PlacedManifest[NetworkPolicy]]]]:
    """Yields one Pod template for each set of policies that restricts its egress."""
    seen: list[list[PlacedManifest[NetworkPolicy]]] = []
    for template in view.templates:
        policies = [
            each
            for each in view.manifests.of(NetworkPolicy)
            if each.object.namespace == template.namespace
            and each.object.restricts_egress
            and each.object.spec.pod_selector.selects(template.labels)
        ]
        if policies and policies not in seen:
            seen.append(policies)
            yield template, policies


def _allowed(policies: list[PlacedManifest[NetworkPolicy]], port: int, protocol: str) -> bool:
    """Whether one of the policies allows a port, to whatever peer."""
    return any(rule.allows(port, protocol) for each in policies for rule in each.object.spec.egress)


def _has_sidecar(template: PodTemplate, view: KubernetesView) -> bool:
    """Whether Pods have a sidecar; where no label says it, Istio's policies count as a sign."""
    proxy = view.proxy_of(template)
    if proxy is not Proxy.UNKNOWN:
        return proxy is Proxy.SIDECAR
    return any(
        each.object.namespace in (template.namespace, ROOT_NAMESPACE)
        for cls in (PeerAuthentication, AuthorizationPolicy)
        for each in view.manifests.of(cls)
    )


def _ports_of(templates: list[PodTemplate]) -> str:
    return ", ".join(
        dict.fromkeys(
            f"{port.name or 'unnamed'} {port.container_port}"
            for template in templates
            for _, container in template.containers()
            for port in container.ports
        )
    )
