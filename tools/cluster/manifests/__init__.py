"""The objects of `make cluster`, which tests use too: those that Tidegate ships, and a gateway."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from cluster.settings import ROOT, ClusterError

__all__ = [
    "OVERLAY",
    "ROUTER_NAMESPACE",
    "manifests",
    "overlay_manifests",
    "read_manifests",
    "render",
    "router_manifests",
]

ROUTER_NAMESPACE: Final = "tidegate-system"
"""Where the router runs."""

OVERLAY: Final = ROOT / "mesh/istio/overlays/dev"
"""What Tidegate ships for a small cluster."""

_FOLDER: Final = Path(__file__).parent
_SERVERS: Final = {"models": "vision", "llm": "llm", "gateway": "gateway"}
_OF_SERVERS: Final = ("Deployment", "PodDisruptionBudget", "Service", "ServiceAccount")
# Who may call the router, which keeps callers of tests out that have identities of their own.
_GUARDS: Final = ("AuthorizationPolicy", "NetworkPolicy", "PeerAuthentication")
_OF_ROUTER: Final = (
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "EnvoyFilter",
    "FlowSchema",
    "Telemetry",
)


def manifests(*names: str) -> list[dict[str, Any]]:
    """Returns parts of the cluster.

    Args:
        names: `ingress`, the gateway of the cluster; or, of what Tidegate ships, `models` (vision
            v1 and v2), `llm`, or `gateway`: the servers, without who may call them.
    """
    found = []
    for name in names:
        if name in _SERVERS:
            found += _servers(_SERVERS[name])
        else:
            found += read_manifests(_FOLDER / f"{name}.yaml")
    return found


def overlay_manifests() -> list[dict[str, Any]]:
    """Returns all objects of the overlay `dev`, as `kubectl apply -k` would apply them.

    But for one option of the router: it computes Istio's metrics, which the proxies here lack.
    """
    found = render(OVERLAY)
    for each in found:
        if each["kind"] == "Deployment" and each["metadata"]["namespace"] == ROUTER_NAMESPACE:
            (container,) = each["spec"]["template"]["spec"]["containers"]
            container["args"].append("--istio-metrics")
    return found


def render(folder: Path) -> list[dict[str, Any]]:
    """Renders a folder with a kustomization, once for each process.

    Raises:
        ClusterError: It cannot be rendered.
    """
    return _documents(_rendered(folder))


def router_manifests(*options: str) -> list[dict[str, Any]]:
    """Returns what the router is shipped with, but for its namespace and who may call it.

    Args:
        options: Further options of the program.
    """
    found = [each for each in overlay_manifests() if _is_of_router(each)]
    for each in found:
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            container["args"] += options
    return found


def read_manifests(*paths: Path) -> list[dict[str, Any]]:
    """Reads the objects of files, and of all YAML files of folders."""
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) or [path])]
    return [each for file in files for each in _documents(file.read_text())]


def _servers(app: str) -> list[dict[str, Any]]:
    return [
        each
        for each in overlay_manifests()
        if each["kind"] == "PriorityClass"
        or (
            each["kind"] in _OF_SERVERS
            and each["metadata"]["namespace"] == "models"
            and each["metadata"]["name"].partition("-")[0] == app
        )
    ]


def _is_of_router(manifest: dict[str, Any]) -> bool:
    kind, metadata = manifest["kind"], manifest["metadata"]
    if kind in (*_GUARDS, "Namespace"):
        return False
    its_own = metadata.get("namespace") == ROUTER_NAMESPACE or "router" in metadata["name"]
    return its_own or kind in (*_OF_ROUTER, "PriorityClass")


@functools.cache
def _rendered(folder: Path) -> str:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run(
        (kubectl, "kustomize", folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"`kubectl kustomize {folder}` failed: {done.stderr}")
    return done.stdout


def _documents(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]
