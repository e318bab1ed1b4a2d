"""Istio's part of a Pod: the proxy that an injection webhook would add.

A Pod with `sidecar.istio.io/inject: "true"` (label or annotation) gets a sidecar, with the
interception of all its connections. With `inject.istio.io/templates: gateway` as well, it is a
gateway: the proxy alone. Istio's own agent starts Envoy and fetches its certificate from istiod.
"""

from __future__ import annotations

import asyncio
import enum
import json
from typing import TYPE_CHECKING, Any, Final

import yaml

from cluster.kube_api import ApiError, KubeApi, Manifest
from cluster.networks import NETWORKS, run_tool
from cluster.pod_spec import ContainerSpec, Probe
from cluster.settings import BINARIES, BRIDGE_ADDRESS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Injection", "injection_of", "istio_labels", "proxy_container", "set_up_proxy"]

_INJECT: Final = "sidecar.istio.io/inject"
_TEMPLATES: Final = "inject.istio.io/templates"
_PROXY_USER: Final = 1337
_POLL_S: Final = 0.1
_TOKEN_S: Final = 12 * 3600
_EXCLUDED: Final = "traffic.sidecar.istio.io/exclude{}boundPorts"
# All ports are intercepted but those of the agent itself, and those that annotations name.
_OWN_PORTS: Final = "15090,15021,15020"
_INTERCEPTION: Final = (
    *("-p", "15001", "-z", "15006", "-u", str(_PROXY_USER), "-g", str(_PROXY_USER)),
    *("-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "--redirect-dns"),
)
_READINESS: Final = Probe(
    check="httpGet",
    port=15021,
    detail={"path": "/healthz/ready"},
    delay_s=0,
    period_s=0.2,
    timeout_s=3,
    successes=1,
    failures=4,
)


class Injection(enum.Enum):
    """What Istio adds to a Pod."""

    SIDECAR = "sidecar"
    GATEWAY = "router"


def injection_of(pod: Manifest) -> Injection | None:
    """What the Pod asks Istio for; `None` if it is not in the mesh."""
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    if labels.get(_INJECT, annotations.get(_INJECT, "")) != "true":
        return None
    is_gateway = annotations.get(_TEMPLATES) == "gateway"
    return Injection.GATEWAY if is_gateway else Injection.SIDECAR


def istio_labels(pod: Manifest, injection: Injection) -> dict[str, str]:
    """The labels that Istio's injector gives a Pod.

    Args:
        pod: The Pod.
        injection: What it asks for. A gateway does not say that it takes mutual TLS.
    """
    labels = pod["metadata"].get("labels", {})
    name = labels.get("app.kubernetes.io/name", labels.get("app", _workload(pod)))
    takes_mutual_tls = {"security.istio.io/tlsMode": "istio"}
    return {
        **(takes_mutual_tls if injection is Injection.SIDECAR else {}),
        "service.istio.io/canonical-name": name,
        "service.istio.io/canonical-revision": labels.get("version", "latest"),
    }


async def set_up_proxy(
    pod: Manifest, injection: Injection, folder: Path, network: str, api: KubeApi
) -> None:
    """Writes the files of the agent, and intercepts the connections of a Pod with a sidecar.

    Args:
        pod: The Pod.
        injection: What it asks for.
        folder: The folder of the agent, to be made.
        network: The Pod's network namespace.
        api: A client of the API server.
    """
    metadata = pod["metadata"]
    account = pod["spec"].get("serviceAccountName", "default")
    token = await api.pod_token(pod, account, _TOKEN_S, "istio-ca")
    files = {
        "var/run/secrets/tokens/istio-token": token,
        "var/run/secrets/istio/root-cert.pem": await _root_certificate(metadata["namespace"], api),
        "etc/istio/pod/labels": _downward(metadata.get("labels", {})),
        "etc/istio/pod/annotations": _downward(metadata.get("annotations", {})),
        "etc/istio/proxy/.keep": "",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    await run_tool("chown", "-R", f"{_PROXY_USER}:{_PROXY_USER}", str(folder))
    if injection is Injection.SIDECAR:
        agent = str(BINARIES / "pilot-agent")
        enter = ("nsenter", f"--net={NETWORKS / network}", "--")
        await run_tool(*enter, agent, "istio-iptables", *_interception(pod))


def _interception(pod: Manifest) -> tuple[str, ...]:
    """The flags of Istio's program that sets the interception up."""
    annotations = pod["metadata"].get("annotations", {})
    inbound, outbound = (annotations.get(_EXCLUDED.format(each), "") for each in ("In", "Out"))
    excluded = ",".join(filter(None, (_OWN_PORTS, inbound)))
    return (*_INTERCEPTION, "-d", excluded, *(("-o", outbound) if outbound else ()))


def proxy_container(
    pod: Manifest, injection: Injection, address: str, folder: Path, path: str
) -> ContainerSpec:
    """The container of Istio's agent, which runs Envoy.

    Args:
        pod: The Pod.
        injection: What it asks for.
        address: The Pod's address.
        folder: The folder of the agent.
        path: The search path of its process.
    """
    metadata = pod["metadata"]
    namespace = metadata["namespace"]
    env = {
        "PATH": path,
        "HOME": str(folder),
        "POD_NAME": metadata["name"],
        "POD_NAMESPACE": namespace,
        "INSTANCE_IP": address,
        "SERVICE_ACCOUNT": pod["spec"].get("serviceAccountName", "default"),
        "CLOUD_PLATFORM": "none",
        "ISTIOD_SAN": "istiod.istio-system.svc",
        "ISTIO_META_CLUSTER_ID": "Kubernetes",
        "ISTIO_META_WORKLOAD_NAME": _workload(pod),
        "ISTIO_METAJSON_LABELS": json.dumps(metadata.get("labels", {})),
        "PILOT_CERT_PROVIDER": "istiod",
        "PROXY_CONFIG": json.dumps(_proxy_config(pod)),
        "TRUST_DOMAIN": "cluster.local",
    }
    if injection is Injection.SIDECAR:
        env |= {"ISTIO_META_INTERCEPTION_MODE": "REDIRECT", "ISTIO_META_DNS_CAPTURE": "true"}
    user = str(_PROXY_USER)
    return ContainerSpec(
        name="istio-proxy",
        image="auto",
        command=(
            *("setpriv", "--reuid", user, "--regid", user, "--clear-groups"),
            *(str(BINARIES / "pilot-agent"), "proxy", injection.value),
            *("--domain", f"{namespace}.svc.cluster.local"),
            "--proxyLogLevel=warning",
        ),
        env=env,
        folder=folder,
        probes={"readiness": _READINESS},
        is_sidecar=injection is Injection.SIDECAR,
    )


def _proxy_config(pod: Manifest) -> dict[str, Any]:
    ours = {
        "binaryPath": str(BINARIES / "envoy"),
        "concurrency": 1,
        "configPath": "./etc/istio/proxy",
        "discoveryAddress": f"{BRIDGE_ADDRESS}:15012",
        "proxyBootstrapTemplatePath": str(BINARIES / "envoy_bootstrap.json"),
        "statusPort": 15020,
    }
    given = pod["metadata"].get("annotations", {}).get("proxy.istio.io/config", "")
    return ours | (yaml.safe_load(given) or {})


async def _root_certificate(namespace: str, api: KubeApi) -> str:
    """Istio's root certificate. istiod writes it into each namespace soon after it starts."""
    path = f"/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert"
    while True:
        try:
            if found := (await api.call("GET", path))["data"]["root-cert.pem"]:
                return str(found)
        except ApiError as error:
            if error.status not in (0, 404, 429, 500, 503):
                raise
        await asyncio.sleep(_POLL_S)


def _workload(pod: Manifest) -> str:
    """The name of the Deployment of a Pod, or of the Pod itself."""
    metadata = pod["metadata"]
    owners = metadata.get("ownerReferences", [])
    if not owners:
        return str(metadata["name"])
    suffix = metadata.get("labels", {}).get("pod-template-hash", "")
    return str(owners[0]["name"].removesuffix(f"-{suffix}"))


def _downward(values: dict[str, str]) -> str:
    """Labels or annotations as the downward API writes them to a file."""
    return "\n".join(f"{name}={json.dumps(value)}" for name, value in values.items())
