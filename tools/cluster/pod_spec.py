"""Reads Pods: what to run for each container, and what the stand-in does not do.

Pure functions of manifests.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.container_view import ContainerUser, Mount, container_user
from cluster.volumes import KNOWN_VOLUMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cluster.kube_api import Manifest

__all__ = ["ContainerSpec", "Probe", "UnsupportedPodError", "container_specs", "init_specs"]

_FIELDS: Final = re.compile(r"^(?P<part>metadata\.labels|metadata\.annotations)\['(?P<key>.+)'\]$")
_REFERENCE: Final = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_CHECKS: Final = ("httpGet", "tcpSocket", "grpc", "exec")
_UNITS: Final = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_QUANTITY: Final = re.compile(r"^([0-9.]+)(\w*)$")


class UnsupportedPodError(Exception):
    """A Pod uses a feature that the stand-in for the kubelet does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe of a container.

    Attributes:
        check: The kind of check, as Kubernetes names it.
        port: The port; 0 for `exec`.
        detail: The field of that kind.
        delay_s: Seconds before the first check.
        period_s: Seconds between two checks.
        timeout_s: Seconds to answer.
        successes: Checks in a row after which the probe succeeds.
        failures: Checks in a row after which it fails.
    """

    check: str
    port: int
    detail: Mapping[str, Any]
    delay_s: float
    period_s: float
    timeout_s: float
    successes: int
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """One container, as a process.

    Attributes:
        name: Its name.
        image: Its image, for display.
        command: The command line.
        env: All environment variables.
        folder: The working directory.
        probes: The probes by name: `startup`, `readiness`, `liveness`.
        pre_stop: The `preStop` hook; empty if there is none.
        mounts: The volumes that it sees.
        user: As whom it runs.
        is_read_only: Whether it can write to its volumes only.
        is_sidecar: Whether it starts before the others, and stops after them.
    """

    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    probes: Mapping[str, Probe] = field(default_factory=dict)
    pre_stop: Mapping[str, Any] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    user: ContainerUser = field(default_factory=ContainerUser)
    is_read_only: bool = False
    is_sidecar: bool = False


def container_specs(
    pod: Manifest, address: str, env: Mapping[str, str], folder: Path
) -> list[ContainerSpec]:
    """Reads the containers of a Pod.

    Args:
        pod: The Pod.
        address: Its address.
        env: The environment variables that every container gets.
        folder: The working directory of containers that set none.

    Raises:
        UnsupportedPodError: The Pod needs what the stand-in does not have.
    """
    containers = pod["spec"]["containers"]
    return [_container(each, pod, address, env, folder) for each in containers]


def init_specs(
    pod: Manifest, address: str, env: Mapping[str, str], folder: Path
) -> list[ContainerSpec]:
    """Reads the init containers of a Pod, as `container_specs` does its containers.

    Raises:
        UnsupportedPodError: The Pod needs what the stand-in does not have.
    """
    found = []
    for each in pod["spec"].get("initContainers") or ():
        if each.get("restartPolicy"):
            raise UnsupportedPodError(
                f"init container {each['name']}: restartPolicy is not supported by the kubelet"
                " stand-in, which knows no sidecar but Istio's"
            )
        found.append(_container(each, pod, address, env, folder))
    return found


def probes_of(container: Mapping[str, Any]) -> dict[str, Probe]:
    """Reads the probes of a container.

    Raises:
        UnsupportedPodError: A probe is of an unknown kind, or names an unknown port.
    """
    names = {"startup": "startupProbe", "readiness": "readinessProbe", "liveness": "livenessProbe"}
    return {
        name: _probe(container[key], container) for name, key in names.items() if key in container
    }


def _container(
    container: Mapping[str, Any],
    pod: Manifest,
    address: str,
    env: Mapping[str, str],
    folder: Path,
) -> ContainerSpec:
    name = container["name"]
    if container.get("envFrom"):
        raise UnsupportedPodError(
            f"container {name}: envFrom is not supported by the kubelet stand-in"
        )
    variables = dict(env)
    for each in container.get("env", []):
        variables[each["name"]] = _expanded(_variable(each, container, pod, address), variables)
    command = [*container.get("command", []), *container.get("args", [])]
    if not container.get("command"):
        raise UnsupportedPodError(
            f"container {name}: no command; the kubelet stand-in runs commands and knows no images"
        )
    return ContainerSpec(
        name=name,
        image=container.get("image", ""),
        command=tuple(_expanded(each, variables) for each in command),
        env=variables,
        folder=folder / container.get("workingDir", "."),
        probes=probes_of(container),
        pre_stop=container.get("lifecycle", {}).get("preStop", {}),
        mounts=_mounts(container, pod),
        user=_user(container, pod),
        is_read_only=(container.get("securityContext") or {}).get("readOnlyRootFilesystem", False),
    )


def _mounts(container: Mapping[str, Any], pod: Manifest) -> list[Mount]:
    known = {each["name"]: each for each in pod["spec"].get("volumes") or ()}
    found = []
    for each in container.get("volumeMounts") or ():
        # The API server adds the volume of the token, which the stand-in mounts for every Pod.
        if each.get("mountPath") == _TOKEN_FOLDER:
            continue
        volume = known.get(each.get("name", ""), {})
        if not any(kind in volume for kind in KNOWN_VOLUMES):
            kinds = ", ".join(set(volume) - {"name"}) or "unknown"
            raise UnsupportedPodError(
                f"container {container['name']}: the volume {each.get('name')} is {kinds}; the"
                f" kubelet stand-in has {', '.join(KNOWN_VOLUMES)}"
            )
        found.append(
            Mount(
                volume=each["name"],
                path=Path(each["mountPath"]),
                sub_path=each.get("subPath", ""),
                is_read_only=each.get("readOnly", False) or "emptyDir" not in volume,
            )
        )
    return found


def _user(container: Mapping[str, Any], pod: Manifest) -> ContainerUser:
    user = container_user(pod["spec"], container)
    outer, own = (each.get("securityContext") or {} for each in (pod["spec"], container))
    if own.get("runAsNonRoot", outer.get("runAsNonRoot", False)) and not user.uid:
        raise UnsupportedPodError(
            f"container {container['name']}: runAsNonRoot needs a runAsUser that is not 0; the"
            " kubelet stand-in knows no images, whose user it could be"
        )
    return user


def _variable(
    variable: Mapping[str, Any], container: Mapping[str, Any], pod: Manifest, address: str
) -> str:
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    if "fieldRef" in source:
        return _field(source["fieldRef"]["fieldPath"], pod, address)
    if "resourceFieldRef" in source:
        return _resource(source["resourceFieldRef"], container)
    raise UnsupportedPodError(
        f"container {container['name']}: {variable['name']} comes from {', '.join(source)};"
        " the kubelet stand-in takes fieldRef and resourceFieldRef only"
    )


def _resource(source: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    """A request or a limit of the container itself, in the unit of the divisor, rounded up."""
    kind, _, name = source["resource"].partition(".")
    given = (container.get("resources") or {}).get(kind, {}).get(name)
    if given is None:
        raise UnsupportedPodError(
            f"container {container['name']} has no {source['resource']}, which a variable asks for"
        )
    # The API server writes the divisor 0 for none.
    divisor = _quantity(source.get("divisor", "1")) or 1.0
    return str(math.ceil(_quantity(given) / divisor))


def _quantity(text: object) -> float:
    found = _QUANTITY.match(str(text))
    if found is None or found[2] not in _UNITS:
        raise UnsupportedPodError(f"the kubelet stand-in cannot read the quantity {text}")
    return float(found[1]) * _UNITS[found[2]]


def _field(path: str, pod: Manifest, address: str) -> str:
    metadata, spec = pod["metadata"], pod["spec"]
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.hostIP": "",
        "status.podIP": address,
        "status.podIPs": address,
    }
    if path in known:
        return str(known[path])
    if found := _FIELDS.match(path):
        part = found["part"].removeprefix("metadata.")
        return str(metadata.get(part, {}).get(found["key"], ""))
    raise UnsupportedPodError(f"the kubelet stand-in does not know the field {path}")


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda found: variables.get(found[1], found[0]), text)


def _probe(probe: Mapping[str, Any], container: Mapping[str, Any]) -> Probe:
    kinds = [each for each in _CHECKS if each in probe]
    if len(kinds) != 1:
        raise UnsupportedPodError(f"container {container['name']}: a probe without a known check")
    detail = probe[kinds[0]]
    return Probe(
        check=kinds[0],
        port=0 if kinds[0] == "exec" else _port(detail["port"], container),
        detail=detail,
        delay_s=probe.get("initialDelaySeconds", 0),
        period_s=probe.get("periodSeconds", 10),
        timeout_s=probe.get("timeoutSeconds", 1),
        successes=probe.get("successThreshold", 1),
        failures=probe.get("failureThreshold", 3),
    )


def _port(port: int | str, container: Mapping[str, Any]) -> int:
    if isinstance(port, int):
        return port
    for each in container.get("ports", []):
        if each.get("name") == port:
            return int(each["containerPort"])
    raise UnsupportedPodError(
        f"container {container['name']}: no port is named {shlex.quote(port)}"
    )
