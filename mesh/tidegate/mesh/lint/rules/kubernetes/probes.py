"""Rules about probes: when a Pod gets requests, and when it is restarted."""

from collections.abc import Iterator

from tidegate.chassis.health import LIVENESS, OVERALL, READINESS, STARTUP
from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.knowledge.grpc_services import is_known_service
from tidegate.mesh.lint.kubernetes.pods import ContainerProbe, PodContainer
from tidegate.mesh.lint.kubernetes.server_settings import is_own_server
from tidegate.mesh.lint.kubernetes.view import KubernetesView, PodTemplate
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

# The names of probes in Kubernetes are the health names that they ask for.
_KINDS = (STARTUP, READINESS, LIVENESS)
_READY_PATH = "/readyz"


@kubernetes_rule(
    "no-startup-probe",
    Severity.WARNING,
    "a server has no startup probe",
    "a model loads for minutes, and the liveness probe must not count them",
)
def no_startup_probe(view: MeshView) -> Iterator[Finding]:
    """Servers that are judged by their liveness while they still load."""
    for template, path, container in _servers(view.kubernetes):
        if container.startup_probe is not None:
            continue
        effect = (
            "its liveness probe counts while it starts, and restarts it"
            if container.liveness_probe is not None
            else "a server that hangs while it starts is never restarted"
        )
        yield Finding(
            template.manifest,
            f"{path}.startupProbe",
            f"container {container.name} has no startup probe: {effect}",
            _write(STARTUP, container, "with twice the time of a start"),
        )


@kubernetes_rule(
    "no-readiness-probe",
    Severity.ERROR,
    "a server behind a Service has no readiness probe",
    "without it a Pod gets requests as soon as its process runs",
)
def no_readiness_probe(view: MeshView) -> Iterator[Finding]:
    """Servers that get requests before they can answer."""
    for template, path, container in _servers(view.kubernetes):
        services = view.kubernetes.services_of(template)
        if container.readiness_probe is None and services:
            yield Finding(
                template.manifest,
                f"{path}.readinessProbe",
                f"container {container.name} has no readiness probe: {services[0]} sends it"
                " requests while the model loads, and they fail",
                _write(READINESS, container),
            )


@kubernetes_rule(
    "no-liveness-probe",
    Severity.WARNING,
    "a server has no liveness probe",
    "only this probe restarts a process that hangs",
)
def no_liveness_probe(view: MeshView) -> Iterator[Finding]:
    """Servers that stay when they hang."""
    for template, path, container in _servers(view.kubernetes):
        if container.liveness_probe is None:
            yield Finding(
                template.manifest,
                f"{path}.livenessProbe",
                f"container {container.name} has no liveness probe: a process that hangs is not"
                " ready and is never restarted",
                _write(LIVENESS, container),
            )


@kubernetes_rule(
    "unknown-health-service",
    Severity.ERROR,
    "a gRPC probe asks a server of Tidegate for a health name that it does not have",
    "the server answers NOT_FOUND, so the probe never succeeds",
)
def unknown_health_service(view: MeshView) -> Iterator[Finding]:
    """Probes that never succeed."""
    for template, path, container, kind, probe in _probes(view.kubernetes):
        if probe.grpc is None or not is_own_server(container):
            continue
        service = probe.grpc.service
        if service in (OVERALL, *_KINDS) or is_known_service(service):
            continue
        yield Finding(
            template.manifest,
            f"{path}.{kind}Probe.grpc.service",
            f"container {container.name} has no health name {service!r}: its {kind} probe fails for"
            " ever",
            f"write {kind}, or the full name of a service as tidegate.vision.v1.VisionService",
        )


@kubernetes_rule(
    "liveness-follows-readiness",
    Severity.WARNING,
    "a liveness probe asks what the readiness probe asks",
    "overload and drain make a server unready; a restart then cuts its calls and loads the model"
    " anew",
)
def liveness_follows_readiness(view: MeshView) -> Iterator[Finding]:
    """Servers that are restarted because they are busy or end."""
    for template, path, container in _servers(view.kubernetes):
        liveness, readiness = container.liveness_probe, container.readiness_probe
        if liveness is None:
            continue
        same = readiness is not None and liveness.asks_the_same_as(readiness)
        if same or (is_own_server(container) and _asks_readiness(liveness)):
            what = "what its readiness probe asks" if same else "whether it serves"
            yield Finding(
                template.manifest,
                f"{path}.livenessProbe",
                f"the liveness probe of container {container.name} asks {what}: an overloaded or"
                " draining server is restarted, and its calls are lost",
                "ask the gRPC health name liveness, or another path than readiness asks",
            )


@kubernetes_rule(
    "unknown-probe-port",
    Severity.ERROR,
    "a probe asks a port that no container declares",
    "the probe never succeeds, so the Pod is never ready or is restarted for ever; a number that is"
    " not declared may still be open",
    lesser=Severity.WARNING,
)
def unknown_probe_port(view: MeshView) -> Iterator[Finding]:
    """Probes at ports that nothing listens on."""
    for template, path, container, kind, probe in _probes(view.kubernetes):
        port = probe.port
        if port is None:
            continue
        # The kubelet looks up a name in the probed container, and a number in the whole Pod.
        found = (
            container.port_named(port) is not None
            if isinstance(port, str)
            else template.has_port(port)
        )
        if not found:
            declared = ", ".join(
                f"{each.name or 'unnamed'} {each.container_port}" for each in container.ports
            )
            named = isinstance(port, str)
            owner = f"container {container.name} has no" if named else "no container declares"
            unless = "" if named else "unless one listens there, "
            yield Finding(
                template.manifest,
                f"{path}.{kind}Probe.{probe.port_path}",
                f"{owner} port {port}: {unless}the {kind} probe fails for ever",
                f"write one that container {container.name} declares ({declared or 'none yet'}), or"
                " declare it under ports",
                is_lesser=not named,
            )


def _servers(view: KubernetesView) -> Iterator[tuple[PodTemplate, str, PodContainer]]:
    """Yields the containers of running workloads that answer requests."""
    for template in view.templates:
        if template.keeps_running:
            for path, container in view.servers_in(template):
                yield template, path, container


def _probes(
    view: KubernetesView,
) -> Iterator[tuple[PodTemplate, str, PodContainer, str, ContainerProbe]]:
    for template in view.templates:
        for path, container in template.containers():
            for kind in _KINDS:
                probe: ContainerProbe | None = getattr(container, f"{kind}_probe")
                if probe is not None:
                    yield template, path, container, kind, probe


def _asks_readiness(probe: ContainerProbe) -> bool:
    """Whether a probe of a server of Tidegate asks for more than its event loop."""
    if probe.grpc is not None:
        return probe.grpc.service != LIVENESS
    return probe.http_get is not None and probe.http_get.path == _READY_PATH


def _write(kind: str, container: PodContainer, more: str = "") -> str:
    """The fix of a missing probe: HTTP if the other probes are, else gRPC."""
    others = (container.startup_probe, container.readiness_probe, container.liveness_probe)
    http = next((each.http_get for each in others if each is not None and each.http_get), None)
    if http is not None:
        action = f"httpGet: {{port: {http.port}, path: PATH}}"
    else:
        ports = [each.container_port for each in container.ports if "grpc" in each.name]
        port = ports[0] if ports else "PORT"
        action = f"grpc: {{port: {port}, service: {kind}}}"
    return f"write '{kind}Probe: {{{action}}}' {more}".rstrip()
