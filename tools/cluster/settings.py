"""What a test cluster is made of: its settings, programs, addresses and mesh configuration.

The test reads these values, and the cluster's process gets them as JSON. So only the test's process
imports Tidegate.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from build_servers import SERVERS

__all__ = [
    "BINARIES",
    "BRIDGE_ADDRESS",
    "MESH_LABEL",
    "NODE_NAME",
    "ROOT",
    "ClusterError",
    "ClusterSettings",
    "Programs",
    "mesh_config",
    "missing_parts",
]

ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder in which Pods run their commands, unless they set `workingDir`."""

BRIDGE_ADDRESS: Final = "10.77.0.1"
"""The address of the control plane on the bridge of the Pods."""

MESH_LABEL: Final = {"istio-discovery": "enabled"}
"""The label of the namespaces that istiod watches."""

_COMPONENTS: Final = ROOT / "mesh/istio/components"
_PROVIDERS: Final = ("access-log", "tracing")

NODE_NAME: Final = "node-1"

BINARIES: Final = Path("/run/test-cluster/bin")
"""The programs of the sidecars, in the cluster's own /run, where their user may read them."""

_COMMANDS: Final = {
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}


class ClusterError(Exception):
    """The test cluster, or a part of it, does not work; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Settings of one test cluster.

    Attributes:
        namespaces: The namespaces to create, all of them in the mesh.
        istiod_env: Environment variables of istiod, such as `PILOT_DEBOUNCE_AFTER`.
        mesh_config: Fields of Istio's mesh configuration that replace the defaults.
        controllers: Whether the controller manager runs: Deployments, EndpointSlices and so on.
        istio: Whether istiod runs. Istio's CRDs are there in any case.
        api_server_options: Further options of the API server.
        start_timeout_s: Seconds within which every server must be ready.
    """

    namespaces: tuple[str, ...] = ("models", "tidegate-system", "istio-ingress")
    istiod_env: dict[str, str] = field(default_factory=dict)
    mesh_config: dict[str, Any] = field(default_factory=dict)
    controllers: bool = True
    istio: bool = True
    api_server_options: tuple[str, ...] = ()
    start_timeout_s: float = 120.0


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """The paths of the programs that a cluster runs."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    istiod: Path
    pilot_agent: Path
    envoy: Path

    @property
    def crds(self) -> Path:
        """The file with the definitions of Istio's objects."""
        return self.istiod.parent / "crd-all.gen.yaml"

    @property
    def envoy_bootstrap(self) -> Path:
        """The template from which the agent makes Envoy's first configuration."""
        return self.pilot_agent.parent / "envoy_bootstrap.json"

    @classmethod
    def found(cls) -> Programs:
        """The programs of this machine.

        Raises:
            EnvoyError: There is no Envoy.
        """
        from tidegate.mesh.envoy.binary import find_envoy

        return cls(
            etcd=SERVERS["etcd"].path,
            kube_apiserver=SERVERS["kube-apiserver"].path,
            kube_controller_manager=SERVERS["kube-controller-manager"].path,
            istiod=SERVERS["pilot-discovery"].path,
            pilot_agent=SERVERS["pilot-agent"].path,
            envoy=find_envoy(),
        )


def missing_parts() -> str:
    """Says what this machine lacks for a test cluster, and how to get it; empty if nothing."""
    if sys.platform != "linux":
        return "the test cluster needs Linux: it runs in network namespaces"
    if os.geteuid() != 0:
        return "the test cluster needs root: it makes network namespaces"
    lacking = sorted({each for name, each in _COMMANDS.items() if shutil.which(name) is None})
    if lacking:
        return f"the test cluster needs programs: install the packages {', '.join(lacking)}"
    unbuilt = [each.program for each in SERVERS.values() if not each.path.exists()]
    if unbuilt:
        return f"no {', '.join(unbuilt)}; `make servers` builds them"
    return ""


def mesh_config(settings: ClusterSettings) -> dict[str, Any]:
    """Returns Istio's mesh configuration, with the providers that Tidegate ships."""
    shipped = [
        yaml.load((_COMPONENTS / each / "mesh-config.yaml").read_text(), Loader=yaml.CSafeLoader)
        for each in _PROVIDERS
    ]
    return {
        "rootNamespace": "istio-system",
        "trustDomain": "cluster.local",
        "enableAutoMtls": True,
        "discoverySelectors": [{"matchLabels": MESH_LABEL}],
        "extensionProviders": [
            provider for each in shipped for provider in each["extensionProviders"]
        ],
        **settings.mesh_config,
    }
