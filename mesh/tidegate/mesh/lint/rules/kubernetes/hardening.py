"""Rules about images, rights and identities of containers."""

import re
from collections.abc import Iterator
from typing import Final

from tidegate.istio.reading.annotations import ENVIRONMENT
from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.kubernetes.pods import SecurityContext
from tidegate.mesh.lint.kubernetes.services import RoleBinding, ServiceAccount
from tidegate.mesh.lint.kubernetes.view import PodTemplate
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

_PRODUCTION: Final = "prod"
_WITH_DIGEST: Final = re.compile(r".+@sha256:[0-9a-f]{64}")
# The injector replaces it by the proxy's image.
_INJECTED_IMAGE: Final = "auto"


@kubernetes_rule(
    "image-without-digest",
    Severity.ERROR,
    f"an image has no digest; an error where {ENVIRONMENT} is {_PRODUCTION}",
    "a tag may name another image tomorrow, and a rollout compares versions",
    lesser=Severity.NOTE,
)
def image_without_digest(view: MeshView) -> Iterator[Finding]:
    """Images that may change."""
    for template in view.kubernetes.templates:
        in_production = view.kubernetes.environment_of(template) == _PRODUCTION
        for path, image in _images(template):
            if not image or image == _INJECTED_IMAGE or _WITH_DIGEST.fullmatch(image):
                continue
            yield Finding(
                template.manifest,
                path,
                f"{image} has no digest: another image may run tomorrow under this name",
                f"write {image.partition('@')[0]}@sha256: and its 64 digits, or set the digest"
                " under images of the kustomization",
                is_lesser=not in_production,
            )


@kubernetes_rule(
    "not-restricted",
    Severity.WARNING,
    "a container may do more than Kubernetes' restricted profile allows, or write its root",
    "who breaks into a server gets all that its container may do",
)
def not_restricted(view: MeshView) -> Iterator[Finding]:
    """Containers with more rights than a server needs."""
    for template in view.kubernetes.templates:
        spec = template.spec
        shared = [
            name
            for name, on in (
                ("hostNetwork", spec.host_network),
                ("hostPID", spec.host_pid),
                ("hostIPC", spec.host_ipc),
                ("a hostPath volume", any(each.host_path for each in spec.volumes)),
            )
            if on
        ]
        if shared:
            yield Finding(
                template.manifest,
                template.at("spec"),
                f"the Pods share the node's own: {', '.join(shared)}",
                "remove it",
            )
        for path, container in template.containers(init=True):
            missing = list(_missing(container.security_context, spec.security_context))
            if missing:
                yield Finding(
                    template.manifest,
                    f"{path}.securityContext",
                    f"container {container.name} is not restricted: whoever breaks in may do more"
                    " than it needs",
                    f"write {', '.join(missing)}",
                )


@kubernetes_rule(
    "token-in-server",
    Severity.WARNING,
    "a server gets a token of the API server and no RoleBinding that needs it",
    "who breaks into the server can use it",
)
def token_in_server(view: MeshView) -> Iterator[Finding]:
    """Servers with rights on the cluster."""
    kubernetes = view.kubernetes
    accounts = {
        (each.object.namespace, each.object.metadata.name): each.object
        for each in kubernetes.manifests.of(ServiceAccount)
    }
    bound = {
        (subject.namespace or each.object.namespace, subject.name)
        for each in kubernetes.manifests.of(RoleBinding)
        for subject in each.object.subjects
        if subject.kind == "ServiceAccount"
    }
    for template in kubernetes.templates:
        key = (template.namespace, template.spec.service_account_name)
        if not template.keeps_running or key in bound or not kubernetes.servers_in(template):
            continue
        of_account = accounts[key].automount_service_account_token if key in accounts else None
        of_pod = template.spec.automount_service_account_token
        mounted = of_account if of_pod is None else of_pod
        if mounted is not False:
            yield Finding(
                template.manifest,
                template.at("spec.automountServiceAccountToken"),
                f"the Pods get a token of ServiceAccount {key[1]}, and no RoleBinding here names"
                " it",
                "write 'automountServiceAccountToken: false'",
            )


@kubernetes_rule(
    "unknown-service-account",
    Severity.ERROR,
    "a workload names a ServiceAccount that the files of its namespace do not define",
    "no Pod of it is created",
)
def unknown_service_account(view: MeshView) -> Iterator[Finding]:
    """Workloads whose Pods cannot be created."""
    for template in view.kubernetes.templates:
        name = template.spec.service_account_name
        known = view.kubernetes.accounts_in(template.namespace)
        if known is not None and name not in known:
            yield Finding(
                template.manifest,
                template.at("spec.serviceAccountName"),
                f"{template.namespace} has no ServiceAccount {name}: no Pod is created",
                f"add it, or name one of {', '.join(sorted(known))}",
            )


def _images(template: PodTemplate) -> Iterator[tuple[str, str]]:
    """Yields the images of containers and of volumes, with their paths."""
    for path, container in template.containers(init=True):
        yield f"{path}.image", container.image
    for index, volume in enumerate(template.spec.volumes):
        if volume.image is not None:
            yield template.at(f"spec.volumes[{index}].image.reference"), volume.image.reference


def _missing(own: SecurityContext, of_pod: SecurityContext) -> Iterator[str]:
    """Yields what a container's context lacks, as it is written."""
    if own.privileged:
        yield "privileged: false"
    non_root = own.run_as_non_root if own.run_as_non_root is not None else of_pod.run_as_non_root
    if not non_root:
        yield "runAsNonRoot: true"
    if own.allow_privilege_escalation is not False:
        yield "allowPrivilegeEscalation: false"
    if "ALL" not in own.capabilities.drop or set(own.capabilities.add) - {"NET_BIND_SERVICE"}:
        yield "capabilities: {drop: [ALL]}"
    profile = own.seccomp_profile or of_pod.seccomp_profile
    if profile is None or profile.type not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile: {type: RuntimeDefault}"
    if not own.read_only_root_filesystem:
        yield "readOnlyRootFilesystem: true"
