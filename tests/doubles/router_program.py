"""The router of a cluster as a process, under the Roles that are shipped, on a real API server.

async with router_api(folder) as api:
    with RouterProcess.running(api, "a", namespaces=["models"]) as router: ...
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from built_servers import running
from cluster_host import SERVICE_ACCOUNTS
from envoy_harness import free_port
from istio_api import CRDS, istio_api

from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError
from tidegate.kube.resources import LEASES, NAMESPACES, ROLLOUTS, Manifest, Resource

ROOT = Path(__file__).parents[2]
OWN = "tidegate-system"
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role", Manifest)
BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", Manifest)
FLOW_SCHEMAS = Resource(
    "flowcontrol.apiserver.k8s.io", "v1", "flowschemas", "FlowSchema", Manifest, namespaced=False
)
_KINDS = {each.kind: each for each in (NAMESPACES, SERVICE_ACCOUNTS, ROLES, BINDINGS, FLOW_SCHEMAS)}
WAIT_S = 30.0
PROGRAM = ("-m", "tidegate.router.cluster")
_numbers = itertools.count(1)


class RouterApi:
    """An API server with Istio's CRDs and the Rollout's, where the router may run.

    Attributes:
        server: The server.
        kubeconfig: Of the administrator.
        client: The administrator's.
    """

    def __init__(self, api, folder, client):
        self.server = api
        self.kubeconfig = api.kubeconfig
        self.client = client
        self.folder = folder

    async def install(self):
        """Applies the CRD, and what the router is shipped with but for its Pods."""
        (crd,) = documents("mesh/istio/base/crds/rollouts.yaml")
        await self.client.apply(CRDS, crd, manager="install")
        for name in ("service-account", "rbac-own", "flow-schema"):
            for each in documents(f"mesh/istio/router/{name}.yaml"):
                await self._apply(each)
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(KubeError):
                    await self.client.list(ROLLOUTS)
                    return
                await asyncio.sleep(0.05)

    async def allow(self, namespace, without=None):
        """Lets the router work in a namespace; `without` is the index of a rule to leave out."""
        for each in documents("mesh/istio/router/rbac-models.yaml"):
            each["metadata"]["namespace"] = namespace
            await self._apply(_without_rule(each, without))

    async def allow_sticky(self, *namespaces):
        """Lets the router write EnvoyFilters in some namespaces, as the shipped component does."""
        role, binding, *_ = documents("mesh/istio/components/sticky/rbac.yaml")
        for namespace in namespaces:
            for each in (role, binding):
                each["metadata"]["namespace"] = namespace
                await self._apply(each)

    async def allow_own(self, without=None):
        """Lets the router work in its own namespace; see `allow`."""
        for each in documents("mesh/istio/router/rbac-own.yaml"):
            await self._apply(_without_rule(each, without))

    def routers_token(self):
        """A token of the router's service account."""
        return subprocess.run(
            [
                *(Path(sys.executable).with_name("kubectl"), "--kubeconfig", self.kubeconfig),
                *("create", "token", "tidegate-router", "-n", OWN, "--duration", "1h"),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def routers_kubeconfig(self, through=None, **user):
        """A kubeconfig with a token of the router's service account.

        Args:
            through: A proxy before the API server; None for none.
            user: The credentials instead of a token.
        """
        config = json.loads((through or self).kubeconfig.read_text())
        config["users"][0]["user"] = user or {"token": self.routers_token()}
        path = self.folder / f"router-kubeconfig-{next(_numbers)}"
        path.write_text(json.dumps(config))
        return path

    async def allow_lease(self, name):
        """Lets the router hold another lease too, as somebody may who installs it twice."""
        for each in documents("mesh/istio/router/rbac-own.yaml"):
            each["metadata"]["name"] = name
            for rule in each.get("rules", ()):
                if "resourceNames" in rule:
                    rule["resourceNames"] = [name]
            if "roleRef" in each:
                each["roleRef"]["name"] = name
            await self._apply(each)

    async def leader(self):
        """Who holds the lease; empty if nobody does."""
        with contextlib.suppress(KubeError):
            return (await self.client.get(LEASES, "tidegate-router", OWN)).spec.holder_identity
        return ""

    async def until_leads(self, identity, timeout_s=WAIT_S):
        """Waits until a replica leads; returns after how many seconds."""
        began_s = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while await self.leader() != identity:
                await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    async def _apply(self, body):
        await self.client.apply(_KINDS[body["kind"]], body, manager="install", force=True)


@contextlib.asynccontextmanager
async def router_api(folder):
    async with (
        istio_api(folder) as api,
        KubeClient.opened(kubeconfig=api.kubeconfig) as client,
    ):
        made = RouterApi(api, folder, client)
        await made.install()
        yield made


class RouterProcess:
    """A replica of the router.

    Attributes:
        identity: Its name in the lease.
        process: The process.
        port: The port of its gRPC server.
    """

    def __init__(self, identity, process, port, log):
        self.identity = identity
        self.process = process
        self.port = port
        self._log = log

    @classmethod
    @contextlib.contextmanager
    def running(cls, api, identity, namespaces, *options, kubeconfig=None, program=PROGRAM):
        """Runs a replica.

        Args:
            api: The API server.
            identity: Its name in the lease.
            namespaces: Where it looks for rollouts.
            options: Further options, which count before these here.
            kubeconfig: Its kubeconfig; None for a new one.
            program: What Python runs.
        """
        port, log = free_port(), api.folder / f"router-{identity}.log"
        command = (
            *(sys.executable, *program, "--identity", identity),
            *("--kubeconfig", kubeconfig or api.routers_kubeconfig()),
            *("--namespaces", ",".join(namespaces), "--peers-service", ""),
            *("--grpc-port", str(port), "--metrics-port", "0"),
            *("--evaluate-interval-s", "0.1", "--settle-s", "0.3", "--lease-duration-s", "3"),
            *("--traces-exporter", "none"),
            *options,
        )
        with running(command, log, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
            yield cls(identity, process, port, log)

    @property
    def log(self):
        return self._log.read_text()

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()


def _without_rule(item, number):
    if item["kind"] == "Role" and number is not None:
        del item["rules"][number]
    return item


def documents(path):
    return list(yaml.safe_load_all((ROOT / path).read_text()))
