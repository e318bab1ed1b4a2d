"""Objects of Kubernetes as rules look at them: Pod templates, and what selects them.

Nothing is known about Pods that no file defines. So a rule about a selector holds only in a
namespace with Pod templates, and a rule about an identity only in one with ServiceAccounts.
"""

import enum
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tidegate.istio.names import DOMAIN
from tidegate.istio.reading.annotations import ENVIRONMENT
from tidegate.istio.shapes import HostName
from tidegate.mesh.lint.kubernetes.manifests import Manifests, PlacedManifest
from tidegate.mesh.lint.kubernetes.pods import PodContainer, PodSpecification, PodTemplateSpec
from tidegate.mesh.lint.kubernetes.policies import PeerAuthentication, TlsMode
from tidegate.mesh.lint.kubernetes.services import (
    ConfigMap,
    KubernetesService,
    Namespace,
    PortOfService,
    ServiceAccount,
)
from tidegate.mesh.lint.kubernetes.shapes import (
    IntOrString,
    KubernetesMetadata,
    KubernetesObject,
    LabelSelector,
)
from tidegate.mesh.lint.kubernetes.workloads import (
    BarePod,
    CronJob,
    HorizontalPodAutoscaler,
    ScaledObject,
    ScaleTarget,
    WorkloadResource,
)

__all__ = ["ROOT_NAMESPACE", "Autoscaler", "KubernetesView", "PodTemplate", "Proxy"]

ROOT_NAMESPACE: Final = "istio-system"
"""Istio's root namespace, whose policies are for every namespace."""

_INJECT: Final = "sidecar.istio.io/inject"
_TEMPLATES: Final = "inject.istio.io/templates"
_PROXY_CONTAINER: Final = "istio-proxy"
_ONCE: Final = ("Job", "CronJob", "Pod")
_ISTIO_PORTS: Final = range(15000, 15100)

Autoscaler = PlacedManifest[HorizontalPodAutoscaler] | PlacedManifest[ScaledObject]


class Proxy(enum.Enum):
    """What enforces mesh policies for a Pod."""

    SIDECAR = "a sidecar"
    NONE = "nothing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, eq=False)
class PodTemplate:
    """The Pods of a workload.

    Attributes:
        manifest: The workload.
        path: The path of the template in it; empty for a Pod.
        metadata: The metadata of the Pods.
        spec: What the Pods consist of.
        replicas: The number of Pods, where the workload says it.
    """

    manifest: PlacedManifest[KubernetesObject]
    path: str
    metadata: KubernetesMetadata
    spec: PodSpecification
    replicas: int | None

    def __str__(self) -> str:
        return str(self.manifest)

    @property
    def namespace(self) -> str:
        """The namespace of the Pods."""
        return self.manifest.object.namespace

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of the Pods."""
        return self.metadata.labels

    @property
    def keeps_running(self) -> bool:
        """Whether the workload replaces Pods that end, as a Deployment does."""
        return self.manifest.object.kind not in _ONCE

    @property
    def labels_path(self) -> str:
        """The path of the labels."""
        return self.at("metadata.labels")

    def at(self, path: str) -> str:
        """The path of a field of the template in the workload."""
        return f"{self.path}.{path}" if self.path else path

    def containers(self, *, init: bool = False) -> Iterator[tuple[str, PodContainer]]:
        """Yields the containers with their paths; the injector writes that of Istio's proxy.

        Args:
            init: Whether init containers count too.
        """
        for index, each in enumerate(self.spec.containers):
            if each.name != _PROXY_CONTAINER:
                yield self.at(f"spec.containers[{index}]"), each
        if init:
            for index, each in enumerate(self.spec.init_containers):
                yield self.at(f"spec.initContainers[{index}]"), each

    def sidecars(self) -> Iterator[PodContainer]:
        """Yields the init containers that run beside the others."""
        return (each for each in self.spec.init_containers if each.restart_policy == "Always")

    @property
    def is_gateway(self) -> bool:
        """Whether it runs Istio's proxy alone."""
        return not any(self.containers())

    @property
    def declares_ports(self) -> bool:
        """Whether its containers declare ports, so that a port that is missing is a mistake."""
        return any(each.ports for _, each in self.containers())

    def has_port(self, port: IntOrString) -> bool:
        """Whether a container, or Istio's proxy, listens on a port, as far as they declare it."""
        if isinstance(port, int) and (port in _ISTIO_PORTS or not self.declares_ports):
            return True
        return any(self.hosts_of_port(port))

    def hosts_of_port(self, port: IntOrString) -> Iterator[tuple[str, PodContainer]]:
        """Yields the containers that declare a port, by its name or number."""
        everywhere = [*self.containers(), *(("", each) for each in self.sidecars())]
        for path, each in everywhere:
            if any(port in (known.name, known.container_port) for known in each.ports):
                yield path, each

    def number_of(self, port: IntOrString) -> int | None:
        """The number of a port; None for a name that no container has."""
        if isinstance(port, int):
            return port
        named = (each.port_named(port) for _, each in self.hosts_of_port(port))
        return next((each.container_port for each in named if each is not None), None)


@dataclass(frozen=True)
class KubernetesView:
    """The objects of Kubernetes together.

    Attributes:
        manifests: The objects.
    """

    manifests: Manifests = field(default_factory=Manifests)

    @functools.cached_property
    def templates(self) -> tuple[PodTemplate, ...]:
        """The Pod templates of all workloads."""
        return tuple(
            template
            for each in self.manifests.placed
            if (template := _template_of(each)) is not None
        )

    @functools.cached_property
    def services(self) -> tuple[PlacedManifest[KubernetesService], ...]:
        """The Services."""
        return tuple(self.manifests.of(KubernetesService))

    @functools.cached_property
    def autoscalers(self) -> tuple[Autoscaler, ...]:
        """The HorizontalPodAutoscalers and ScaledObjects."""
        return (
            *self.manifests.of(HorizontalPodAutoscaler),
            *self.manifests.of(ScaledObject),
        )

    def templates_in(self, namespace: str) -> list[PodTemplate]:
        """The Pod templates of a namespace."""
        return [each for each in self.templates if each.namespace == namespace]

    def selected(self, namespace: str, selector: LabelSelector) -> list[PodTemplate]:
        """The Pod templates of a namespace that a selector selects."""
        return [each for each in self.templates_in(namespace) if selector.selects(each.labels)]

    def pods_of(self, service: PlacedManifest[KubernetesService]) -> list[PodTemplate]:
        """The Pod templates that a Service selects; none for a Service without a selector."""
        wanted = service.object.spec.selector
        if not wanted:
            return []
        return self.selected(service.object.namespace, LabelSelector(matchLabels=wanted))

    def services_of(self, template: PodTemplate) -> list[PlacedManifest[KubernetesService]]:
        """The Services that select a Pod template."""
        return [
            each
            for each in self.services
            if each.object.namespace == template.namespace
            and each.object.spec.selector
            and each.object.spec.selector.items() <= template.labels.items()
        ]

    def ports_to(
        self, template: PodTemplate
    ) -> Iterator[tuple[PlacedManifest[KubernetesService], PortOfService]]:
        """Yields the ports of the Services that select a Pod template."""
        for each in self.services_of(template):
            for port in each.object.spec.ports:
                yield each, port

    def servers_in(self, template: PodTemplate) -> list[tuple[str, PodContainer]]:
        """The containers that answer requests, with their paths.

        These are the targets of Services; without any, the containers that declare ports.
        """
        targets = {
            path: container
            for _, port in self.ports_to(template)
            for path, container in template.hosts_of_port(port.target)
            if path
        }
        if targets:
            return list(targets.items())
        containers = list(template.containers())
        with_ports = [(path, each) for path, each in containers if each.ports]
        if not with_ports and len(containers) == 1 and self.services_of(template):
            return containers
        return with_ports

    def service_of_host(self, host: HostName) -> PlacedManifest[KubernetesService] | None:
        """The Service with a full name."""
        for each in self.services:
            if f"{each.object.metadata.name}.{each.object.namespace}.svc.{DOMAIN}" == host:
                return each
        return None

    def target_of(self, namespace: str, target: ScaleTarget) -> PodTemplate | None:
        """The workload that an autoscaler scales."""
        for each in self.templates_in(namespace):
            found = each.manifest.object
            if (found.kind, found.metadata.name) == (target.kind, target.name):
                return each
        return None

    def autoscalers_of(self, template: PodTemplate) -> list[Autoscaler]:
        """The autoscalers of a workload."""
        return [
            each
            for each in self.autoscalers
            if self.target_of(each.object.namespace, each.object.spec.scale_target_ref) is template
        ]

    def least_replicas(self, template: PodTemplate) -> int:
        """The number of Pods that a workload has at least."""
        floors = [_floor(each) for each in self.autoscalers_of(template)]
        if floors:
            return min(floors)
        return 1 if template.replicas is None else template.replicas

    def may_have_several(self, template: PodTemplate) -> bool:
        """Whether a workload ever has more than one Pod."""
        most = [_ceiling(each) for each in self.autoscalers_of(template)]
        return max([*most, template.replicas or 1]) > 1

    def accounts_in(self, namespace: str) -> set[str] | None:
        """The ServiceAccounts of a namespace; None where no file defines any."""
        found = {
            each.object.metadata.name
            for each in self.manifests.of(ServiceAccount)
            if each.object.namespace == namespace
        }
        return found | {"default"} if found else None

    def proxy_of(self, template: PodTemplate) -> Proxy:
        """Whether Pods have a sidecar."""
        metadata = template.metadata
        if template.is_gateway:
            return Proxy.SIDECAR
        asked = metadata.labels.get(_INJECT) or metadata.annotations.get(_INJECT)
        if asked is not None:
            injected = asked == "true"
            proxyless = "grpc-agent" in metadata.annotations.get(_TEMPLATES, "")
            return Proxy.SIDECAR if injected and not proxyless else Proxy.NONE
        if "grpc-agent" in metadata.annotations.get(_TEMPLATES, ""):
            return Proxy.NONE
        labels = self.namespace_labels.get(template.namespace, {})
        if labels.get("istio-injection") == "enabled" or "istio.io/rev" in labels:
            return Proxy.SIDECAR
        return Proxy.UNKNOWN

    @functools.cached_property
    def namespace_labels(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of the namespaces."""
        return {
            each.object.metadata.name: each.object.metadata.labels
            for each in self.manifests.of(Namespace)
        }

    def mutual_tls(self, template: PodTemplate, port: int) -> TlsMode:
        """What connections to a port of Pods must be, by the nearest PeerAuthentication."""
        found: list[TlsMode] = []
        policies = list(self.manifests.of(PeerAuthentication))
        for each in policies:
            selector = each.object.selector
            here = each.object.namespace == template.namespace
            if selector is not None and here and selector.selects(template.labels):
                on_port = each.object.spec.port_level_mtls.get(str(port))
                found += [] if on_port is None else [on_port.mode]
                found.append(each.object.spec.mtls.mode)
        for namespace in (template.namespace, ROOT_NAMESPACE):
            found += [
                each.object.spec.mtls.mode
                for each in policies
                if each.object.selector is None and each.object.namespace == namespace
            ]
        return next((mode for mode in found if mode != "UNSET"), "PERMISSIVE")

    def config_map(self, namespace: str, name: str) -> Mapping[str, str]:
        """The data of a ConfigMap; empty where no file defines it."""
        for each in self.manifests.of(ConfigMap):
            if (each.object.namespace, each.object.metadata.name) == (namespace, name):
                return each.object.data
        return {}

    def environment_of(self, template: PodTemplate) -> str:
        """The environment of a workload: its own label or annotation, or the nearest around it.

        Around it are its namespace, its kustomization, and the other objects of the same files.
        """
        found = template.manifest.object
        namespaces = (
            each.object.metadata
            for each in self.manifests.of(Namespace)
            if each.object.metadata.name == template.namespace
        )
        for metadata in (template.metadata, found.metadata, *namespaces):
            named = _environment(metadata)
            if named:
                return named
        of_kustomization = self.manifests.environments.get(template.manifest.source, "")
        return of_kustomization or self._environment_of_objects

    @functools.cached_property
    def _environment_of_objects(self) -> str:
        named = {_environment(each.object.metadata) for each in self.manifests.placed} - {""}
        return named.pop() if len(named) == 1 else ""


def _environment(metadata: KubernetesMetadata) -> str:
    return metadata.labels.get(ENVIRONMENT) or metadata.annotations.get(ENVIRONMENT, "")


def _floor(autoscaler: Autoscaler) -> int:
    found = autoscaler.object
    if isinstance(found, ScaledObject):
        return found.spec.min_replica_count
    return found.spec.min_replicas


def _ceiling(autoscaler: Autoscaler) -> int:
    found = autoscaler.object
    if isinstance(found, ScaledObject):
        return found.spec.max_replica_count
    return found.spec.max_replicas


def _template_of(manifest: PlacedManifest[KubernetesObject]) -> PodTemplate | None:
    found = manifest.object
    replicas: int | None = None
    template: PodTemplateSpec
    match found:
        case BarePod():
            return PodTemplate(manifest, "", found.metadata, found.spec, 1)
        case CronJob():
            path, template = "spec.jobTemplate.spec.template", found.spec.job_template.spec.template
        case WorkloadResource():
            path, template = "spec.template", found.spec.template
            replicas = found.spec.replicas
        case _:
            return None
    return PodTemplate(manifest, path, template.metadata, template.spec, replicas)
