"""Reads Pods: what to run for each container, and what the stand-in does not do.

Pure functions of manifests.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cluster.kube_api import Manifest

__all__ = ["ContainerSpec", "Probe", "UnsupportedPodError", "container_specs"]

_FIELDS: Final = re.compile(r"^(?P<part>metadata\.labels|metadata\.annotations)\['(?P<key>.+)'\]$")
_REFERENCE: Final = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_CHECKS: Final = ("httpGet", "tcpSocket", "grpc", "exec")


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
        is_sidecar: Whether it starts before the others, and stops after them.
    """

    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    probes: Mapping[str, Probe] = field(default_factory=dict)
    pre_stop: Mapping[str, Any] = field(default_factory=dict)
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
    spec = pod["spec"]
    if spec.get("initContainers"):
        raise UnsupportedPodError("initContainers are not supported by the kubelet stand-in")
    return [_container(each, pod, address, env, folder) for each in spec["containers"]]


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
    for key in ("envFrom", "volumeMounts"):
        # The API server adds the volume of the token, which the stand-in mounts for every Pod.
        if [each for each in container.get(key, []) if each.get("mountPath") != _TOKEN_FOLDER]:
            raise UnsupportedPodError(
                f"container {name}: {key} is not supported by the kubelet stand-in;"
                " containers share the machine's files"
            )
    variables = dict(env)
    for each in container.get("env", []):
        variables[each["name"]] = _expanded(_variable(each, name, pod, address), variables)
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
    )


def _variable(variable: Mapping[str, Any], container: str, pod: Manifest, address: str) -> str:
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    path = source.get("fieldRef", {}).get("fieldPath")
    if path is None:
        raise UnsupportedPodError(
            f"container {container}: {variable['name']} comes from {', '.join(source)};"
            " the kubelet stand-in takes fieldRef only"
        )
    return _field(path, pod, address)


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
