"""Rules about the end of a Pod: it must let calls finish before it is killed.

A Pod ends in this order: its containers run preStop while proxies still learn that it leaves, the
server gets SIGTERM and drains, and after `terminationGracePeriodSeconds` the kubelet kills it.
"""

import math
from collections.abc import Iterator

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.kubernetes.pods import PodContainer
from tidegate.mesh.lint.kubernetes.server_settings import drain_settings_s, is_own_server
from tidegate.mesh.lint.kubernetes.view import KubernetesView, PodTemplate
from tidegate.mesh.lint.view import MeshView
from tidegate.runtime.settings import LAST_WORDS_S

__all__: list[str] = []


@kubernetes_rule(
    "grace-under-drain",
    Severity.ERROR,
    "terminationGracePeriodSeconds is shorter than preStop, the server's drain and its end",
    "the kubelet kills the process, and the calls that still run are lost",
)
def grace_under_drain(view: MeshView) -> Iterator[Finding]:
    """Pods that are killed while they drain."""
    for template in view.kubernetes.templates:
        if not template.keeps_running:
            continue
        grace_s = template.spec.termination_grace_period_seconds
        slowest = max(
            (
                _drain(template, container, view.kubernetes)
                for _, container in template.containers()
            ),
            default=(0.0, ""),
        )
        needed_s, words = slowest
        if needed_s and grace_s < needed_s:
            yield Finding(
                template.manifest,
                template.at("spec.terminationGracePeriodSeconds"),
                f"{grace_s} s are shorter than {words}: the Pod is killed while calls still run",
                f"write {math.ceil(needed_s)} or more, or give the server the same numbers by"
                " termination_grace_s and pre_stop_s",
            )


@kubernetes_rule(
    "no-prestop",
    Severity.WARNING,
    "a server behind a Service stops at once, without a preStop",
    "proxies learn seconds later that a Pod leaves, and still send it requests",
)
def no_prestop(view: MeshView) -> Iterator[Finding]:
    """Servers that stop while proxies still send them requests."""
    for template in view.kubernetes.templates:
        services = view.kubernetes.services_of(template)
        if not template.keeps_running or not services:
            continue
        for path, container in view.kubernetes.servers_in(template):
            if container.lifecycle.pre_stop is not None or _delays(
                template, container, view.kubernetes
            ):
                continue
            own = ", or set drain_delay_s" if is_own_server(container) else ""
            yield Finding(
                template.manifest,
                f"{path}.lifecycle.preStop",
                f"container {container.name} has no preStop: it refuses the requests that"
                f" {services[0]} still sends it while proxies learn that it leaves",
                f"write 'preStop: {{sleep: {{seconds: 15}}}}'{own}",
            )


def _delays(template: PodTemplate, container: PodContainer, view: KubernetesView) -> bool:
    """Whether a server of Tidegate still accepts requests for a while after SIGTERM."""
    if not is_own_server(container):
        return False
    settings = drain_settings_s(container, template, view)
    return settings is None or settings["drain_delay_s"] > 0


def _drain(
    template: PodTemplate, container: PodContainer, view: KubernetesView
) -> tuple[float, str]:
    """The seconds from the end's beginning to the last call's end, and how they add up."""
    pre_stop = container.lifecycle.pre_stop
    sleep_s = pre_stop.sleep_s if pre_stop is not None else 0.0
    parts = [("preStop", sleep_s)]
    if is_own_server(container):
        settings = drain_settings_s(container, template, view)
        parts += list((settings or {}).items())
    parts = [(name, each) for name, each in parts if each]
    if not parts:
        return 0.0, ""
    parts.append(("end of the process", LAST_WORDS_S))
    total = round(sum(each for _, each in parts), 3)
    return total, f"{total:g} s ({' + '.join(f'{name} {each:g}' for name, each in parts)})"
