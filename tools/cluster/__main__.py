"""`make cluster`: a cluster with the models behind a gateway, until Ctrl-C.

The kubeconfig and all logs are in `.tidegate/cluster`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.handle import TestCluster
from cluster.manifests import ROUTER_NAMESPACE, manifests, overlay_manifests
from cluster.settings import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_FOLDER: Final = Path(".tidegate/cluster")
_PORTS: Final = {"vision": 8500, "llm": 8600, "gateway": 8000}
_MODELS_S: Final = 600.0


def main() -> None:
    """Reads the command line, and runs the cluster.

    Raises:
        SystemExit: The cluster cannot start.
    """
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--no-llm", action="store_true", help="leave the language model out")
    arguments = parser.parse_args()
    with _only_one():
        try:
            asyncio.run(_run(with_llm=not arguments.no_llm))
        except ClusterError as error:
            sys.exit(f"make cluster: {error}")


async def _run(*, with_llm: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print("── cluster: etcd, API server, controller manager, istiod", flush=True)
    async with TestCluster.running(_FOLDER) as cluster:
        serving = asyncio.create_task(_serve(cluster, with_llm=with_llm))
        stopping = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                # Raises what went wrong; not a task group, whose error would be a group.
                await serving
                await stopping
        finally:
            serving.cancel()
            stopping.cancel()
        print("── cluster: stopping", flush=True)


async def _serve(cluster: TestCluster, *, with_llm: bool) -> None:
    print(_access(cluster), flush=True)
    print("── cluster: the models, the gateway and the router", flush=True)
    shipped = overlay_manifests()
    await cluster.apply(
        *manifests("ingress"), *(shipped if with_llm else map(_without_llm, shipped))
    )
    await cluster.deployed("istio-ingress", "istio-ingressgateway", timeout_s=_MODELS_S)
    for name, port in _PORTS.items():
        if name == "llm" and not with_llm:
            continue
        await cluster.forward("istio-ingress", "istio-ingressgateway", port, local_port=port)
        print(f"   {name}: 127.0.0.1:{port}", flush=True)
    servers = ("vision-v1", "vision-v2", "gateway-v1", *(("llm-v1",) if with_llm else ()))
    await cluster.deployed("models", *servers, timeout_s=_MODELS_S)
    await cluster.deployed(ROUTER_NAMESPACE, "tidegate-router", timeout_s=_MODELS_S)
    print("── cluster: ready; Ctrl-C ends it", flush=True)


def _without_llm(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns an object as it is where no language model runs."""
    if manifest["kind"] == "Deployment":
        if manifest["metadata"]["name"] == "llm-v1":
            manifest["spec"]["replicas"] = 0
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            # The gateway waits for the models of every server that it has.
            container["args"] = [
                "--llm=" if "--llm=" in each else each for each in container["args"]
            ]
    return manifest


def _access(cluster: TestCluster) -> str:
    kubectl = Path(sys.executable).with_name("kubectl")
    return (
        f"   export KUBECONFIG={cluster.kubeconfig.resolve()}\n"
        f"   export PATH={kubectl.parent}:$PATH\n"
        "   kubectl get pods -A\n"
        f"   logs of Pods: {_FOLDER}/pods/NAMESPACE/POD/CONTAINER.log"
    )


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Holds the folder, and empties it: the objects of an earlier cluster are of no use."""
    _FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with _FOLDER.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"make cluster: another one runs in {_FOLDER}")
        shutil.rmtree(_FOLDER, ignore_errors=True)
        yield


if __name__ == "__main__":
    main()
