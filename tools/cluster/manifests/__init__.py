"""The objects of `make cluster`, which tests use too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from cluster.settings import ROOT

__all__ = ["ROUTER_NAMESPACE", "manifests", "read_manifests", "router_manifests"]

ROUTER_NAMESPACE: Final = "tidegate-system"
"""Where the router runs."""

_FOLDER: Final = Path(__file__).parent
_ISTIO: Final = ROOT / "mesh/istio"
_ROUTER: Final = (
    "base/crds/rollouts",
    "components/access-log/receiver/service",
    "components/access-log/telemetry",
    "components/grpc-deadlines/envoy-filter",
    "router/rbac-own",
    "router/rbac-models",
    "router/rbac-finalizers",
    "router/flow-schema",
    "router/service-account",
    "router/service",
    "router/deployment",
)


def manifests(*names: str) -> list[dict[str, Any]]:
    """Reads files of this folder.

    Args:
        names: Their names without the suffix: `ingress`, `models` (vision v1 and v2) or `llm`.
    """
    return read_manifests(*(_FOLDER / f"{name}.yaml" for name in names))


def router_manifests(*options: str) -> list[dict[str, Any]]:
    """Reads what the router is shipped with, but for its namespace.

    Args:
        options: Further options of the program.
    """
    found = read_manifests(*(_ISTIO / f"{each}.yaml" for each in _ROUTER))
    for each in found:
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            container["args"] += ["--traces-exporter=none", "--istio-metrics", *options]
    return [each for each in found if each["kind"] != "Namespace"]


def read_manifests(*paths: Path) -> list[dict[str, Any]]:
    """Reads the objects of files, and of all YAML files of folders."""
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) or [path])]
    return [
        each
        for file in files
        for each in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)
        if each
    ]
