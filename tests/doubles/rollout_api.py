"""A real API server that knows rollouts, and ways to talk to it.

async with rollout_api(folder) as api:
    api.create(manifest)
    api.kubectl("get", "rollouts")
"""

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from kubernetes_api import kubernetes_api

ROOT = Path(__file__).parents[2]
DEFINITION = ROOT / "mesh/istio/base/crds/rollouts.yaml"
KUBECTL = Path(sys.executable).with_name("kubectl")
NAMESPACE = "models"
_PATH = "/apis/tidegate.dev/v1alpha1/namespaces/{}/rollouts"


class RolloutApi:
    """An API server with the CRD of rollouts and the namespace ``models``.

    Args:
        api: The server.
    """

    def __init__(self, api):
        self.url = api.url
        self.kubeconfig = api.kubeconfig
        self.certificate = api.certificate
        config = json.loads(api.kubeconfig.read_text())
        self._token = config["users"][0]["user"]["token"]
        trusted = config["clusters"][0]["cluster"]["certificate-authority"]
        where = urlsplit(api.url)
        self._connection = http.client.HTTPSConnection(
            where.hostname, where.port, context=ssl.create_default_context(cafile=trusted)
        )

    def close(self):
        self._connection.close()

    def create(self, text, *, dry_run=False, namespace=NAMESPACE):
        """Creates a rollout of YAML text or of values; returns the status and the answer."""
        query = f"?fieldValidation=Strict{'&dryRun=All' if dry_run else ''}"
        path = _PATH.format(namespace) + query
        if isinstance(text, str):
            return self.call("POST", path, text, "application/yaml")
        return self.call("POST", path, json.dumps(text))

    def read(self, name, namespace=NAMESPACE):
        """The object of a rollout."""
        status, answer = self.call("GET", f"{_PATH.format(namespace)}/{name}")
        assert status == 200, answer
        return answer

    def apply_status(self, name, status, namespace=NAMESPACE):
        """Applies a status as the controller does; returns the object."""
        body = {
            "apiVersion": "tidegate.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": name, "namespace": namespace},
            "status": status,
        }
        path = f"{_PATH.format(namespace)}/{name}/status?fieldManager=tests&force=true"
        path += "&fieldValidation=Strict"
        code, answer = self.call("PATCH", path, json.dumps(body), "application/apply-patch+yaml")
        assert code == 200, answer
        return answer

    def call(self, method, path, content=None, kind="application/json"):
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        self._connection.request(method, path, content and content.encode(), headers)
        with self._connection.getresponse() as answer:
            return answer.status, json.loads(answer.read())

    def kubectl(self, *arguments, stdin=None):
        """The output of kubectl, which must succeed."""
        done = self.kubectl_result(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def forget_rollouts(self):
        """Removes all Rollouts without a router, which would hand their traffic back."""
        for name in self.kubectl("get", "rollouts", "-o", "name").split():
            self.kubectl("patch", name, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
        self.kubectl("delete", "rollouts", "--all")

    def kubectl_result(self, *arguments, stdin=None):
        return subprocess.run(
            self.kubectl_command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
        )

    def kubectl_command(self, *arguments):
        return [str(KUBECTL), "--namespace", NAMESPACE, *map(str, arguments)]

    @property
    def environment(self):
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}


@contextlib.asynccontextmanager
async def rollout_api(folder):
    async with kubernetes_api(folder) as server:
        with contextlib.closing(RolloutApi(server)) as api:
            api.kubectl("create", "namespace", NAMESPACE)
            api.kubectl("apply", "--server-side", "-f", DEFINITION)
            api.kubectl(
                "wait", "--for=condition=Established", "--timeout=30s", "crd/rollouts.tidegate.dev"
            )
            # Discovery follows the condition by a moment.
            while api.call("GET", _PATH.format(NAMESPACE))[0] != 200:
                continue
            yield api
