"""Rules about the ports of Services: which protocol a proxy reads, and where requests arrive."""

import re
from collections.abc import Iterator
from typing import Final

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.kubernetes.manifests import PlacedManifest
from tidegate.mesh.lint.kubernetes.services import KubernetesService, PortOfService
from tidegate.mesh.lint.kubernetes.view import KubernetesView, PodTemplate
from tidegate.mesh.lint.view import MeshView

__all__ = ["is_grpc_port"]

# Istio's names of protocols, in appProtocol and before the first dash of a port's name.
_PROTOCOLS: Final = re.compile(
    r"(tcp|udp|grpc|grpc-web|http|http_proxy|http2|https|tls|mongo|redis|mysql)(-.*)?",
    re.IGNORECASE,
)
# Ports whose protocol Istio never guesses: SMTP, DNS, MySQL and MongoDB.
_NEVER_GUESSED: Final = (25, 53, 3306, 27017)
_APP_PROTOCOLS: Final = ("kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss")
_H2C: Final = "kubernetes.io/h2c"
_EXTERNAL: Final = "ExternalName"


@kubernetes_rule(
    "port-without-protocol",
    Severity.WARNING,
    "a port of a Service has neither appProtocol nor a name that begins with a protocol",
    "Istio then guesses by the first bytes of a connection, and takes gRPC for HTTP/2",
)
def port_without_protocol(view: MeshView) -> Iterator[Finding]:
    """Ports whose protocol a proxy has to guess."""
    for service, index, port in _ports(view.kubernetes):
        known = port.app_protocol or port.name
        if port.protocol != "TCP" or port.port in _NEVER_GUESSED:
            continue
        if _PROTOCOLS.fullmatch(known) or port.app_protocol in _APP_PROTOCOLS:
            continue
        if port.app_protocol:
            path, said = "appProtocol", f"appProtocol {port.app_protocol} is none that Istio knows"
        else:
            path = "name"
            said = (
                f"its name {port.name!r} begins with no protocol" if port.name else "it has no name"
            )
        yield Finding(
            service,
            f"spec.ports[{index}].{path}",
            f"port {port.port}: {said}: proxies guess the protocol of each connection",
            "write 'appProtocol: grpc', or http, https or tcp",
        )


@kubernetes_rule(
    "h2c-for-grpc",
    Severity.WARNING,
    "a port with gRPC has appProtocol kubernetes.io/h2c",
    "Istio takes it for HTTP/2, and its sidecars repeat streams that are reset",
)
def h2c_for_grpc(view: MeshView) -> Iterator[Finding]:
    """Ports whose gRPC proxies take for plain HTTP/2."""
    for service, index, port in _ports(view.kubernetes):
        if port.app_protocol == _H2C and _means_grpc(port, view.kubernetes.pods_of(service)):
            yield Finding(
                service,
                f"spec.ports[{index}].appProtocol",
                f"port {port.port} has gRPC, and {_H2C} is plain HTTP/2 to Istio: sidecars repeat"
                " calls whose stream is reset, and they do not on gRPC ports",
                "write 'appProtocol: grpc'",
            )


@kubernetes_rule(
    "unknown-target-port",
    Severity.ERROR,
    "the targetPort of a Service is a port that no container declares",
    "a Pod without a port of that name is no endpoint; a number that is not declared may still be"
    " open",
    lesser=Severity.WARNING,
)
def unknown_target_port(view: MeshView) -> Iterator[Finding]:
    """Requests to ports that nothing listens on."""
    for service, index, port in _ports(view.kubernetes):
        for template in view.kubernetes.pods_of(service):
            if template.has_port(port.target) or (
                template.is_gateway and isinstance(port.target, int)
            ):
                continue
            declared = ", ".join(
                f"{known.name or 'unnamed'} {known.container_port}"
                for _, container in template.containers()
                for known in container.ports
            )
            field = "targetPort" if port.target_port is not None else "port"
            named = isinstance(port.target, str)
            effect = (
                "its Pods are no endpoints of this port"
                if named
                else "unless one listens there, connections to it are refused"
            )
            yield Finding(
                service,
                f"spec.ports[{index}].{field}",
                f"no container of {template} declares port {port.target}: {effect}",
                f"write one that it declares ({declared or 'none yet'}), or declare it",
                is_lesser=not named,
            )
            break


def is_grpc_port(port: PortOfService) -> bool:
    """Whether proxies take the requests of a port for gRPC."""
    return (port.app_protocol or port.name).lower().startswith("grpc")


def _ports(
    view: KubernetesView,
) -> Iterator[tuple[PlacedManifest[KubernetesService], int, PortOfService]]:
    for service in view.services:
        if service.object.spec.type != _EXTERNAL:
            for index, port in enumerate(service.object.spec.ports):
                yield service, index, port


def _means_grpc(port: PortOfService, pods: list[PodTemplate]) -> bool:
    """Whether names or probes say that a port has gRPC."""
    if "grpc" in port.name.lower():
        return True
    for template in pods:
        number = template.number_of(port.target)
        for _, container in template.hosts_of_port(port.target):
            probes = (container.startup_probe, container.readiness_probe, container.liveness_probe)
            if any(each and each.grpc and each.grpc.port == number for each in probes):
                return True
            names = (each.name for each in container.ports if each.container_port == number)
            if any("grpc" in name for name in names):
                return True
    return False
