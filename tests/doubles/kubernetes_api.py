"""A real Kubernetes API server with its etcd, on loopback.

    async with kubernetes_api(folder) as api:
        kubeconfig = api.kubeconfig

There is no controller, scheduler or node: it stores objects, validates them and serves watches.
"""

import asyncio
import contextlib
import json
import shutil
import ssl

import aiohttp
from built_servers import built, running
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from envoy_harness import free_port

START_S = 90.0
_TOKEN = "tests-only"  # the server runs for one test, on loopback only


class KubernetesApi:
    """A running API server.

    Attributes:
        url: Its URL.
        etcd_url: The URL of its etcd.
        kubeconfig: A file for clients with its URL and an administrator's token.
        certificate: The file of the certificate that clients trust.
    """

    def __init__(self, folder):
        self._folder = folder
        self.etcd_url, peer_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        port = free_port()
        self._etcd_command = (
            *(built("etcd"), "--data-dir", folder / "etcd", "--unsafe-no-fsync"),
            *("--listen-client-urls", self.etcd_url, "--advertise-client-urls", self.etcd_url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}"),
        )
        self._command = (
            *(
                built("kube-apiserver"),
                f"--etcd-servers={self.etcd_url}",
                f"--secure-port={port}",
                "--bind-address=127.0.0.1",
            ),
            # It refuses a loopback address here, and no client calls this one.
            *("--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"),
            *(f"--cert-dir={folder / 'certs'}", f"--token-auth-file={folder / 'tokens.csv'}"),
            *("--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16"),
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'sa.pub'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
        )
        self._servers = contextlib.ExitStack()
        self._processes = []
        self.url = f"https://127.0.0.1:{port}"
        self.kubeconfig = folder / "kubeconfig"
        self.certificate = folder / "certs/apiserver.crt"

    async def start(self):
        """Starts the servers, and waits until they are ready."""
        log = self._folder / "kube-apiserver.log"
        etcd = running(self._etcd_command, self._folder / "etcd.log")
        self._processes = [
            self._servers.enter_context(etcd),
            self._servers.enter_context(running(self._command, log)),
        ]
        async with asyncio.timeout(START_S):
            while not await _is_ready(self.url, self.certificate):
                assert self._processes[1].poll() is None, log.read_text()[-3000:]
                await asyncio.sleep(0.1)

    def kill(self):
        """Kills the servers; what they stored stays."""
        for process in self._processes:
            process.kill()
            process.wait()
        self.stop()

    def stop(self):
        """Stops the servers."""
        self._servers.close()

    def wipe(self):
        """Removes all that is stored, while the servers do not run."""
        shutil.rmtree(self._folder / "etcd")


@contextlib.asynccontextmanager
async def kubernetes_api(folder):
    _write_keys(folder)
    api = KubernetesApi(folder)
    try:
        await api.start()
        api.kubeconfig.write_text(json.dumps(_kubeconfig(api.url, api.certificate)))
        yield api
    finally:
        api.stop()


async def _is_ready(url, certificate):
    if not certificate.exists():
        return False
    trusted = ssl.create_default_context(cafile=certificate)
    headers = {"Authorization": f"Bearer {_TOKEN}"}
    try:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{url}/readyz", ssl=trusted) as answer,
        ):
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def _write_keys(folder):
    (folder / "tokens.csv").write_text(f'{_TOKEN},admin,admin,"system:masters"\n')
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "sa.key").write_bytes(private)
    (folder / "sa.pub").write_bytes(public)


def _kubeconfig(url, certificate):
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "tests", "cluster": {"server": url, "certificate-authority": str(certificate)}}
        ],
        "users": [{"name": "tests", "user": {"token": _TOKEN}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "current-context": "tests",
    }
