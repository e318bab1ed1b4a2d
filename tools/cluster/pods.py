"""The life of one Pod: network, sidecar, containers, status, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.containers import Container, PodPlace, now
from cluster.control_plane import API_PORT
from cluster.kube_api import ApiError, KubeApi, Manifest
from cluster.networks import Network, add_pod_network, remove_pod_network, run_tool
from cluster.pod_spec import ContainerSpec, UnsupportedPodError, container_specs, init_specs
from cluster.probes import Prober
from cluster.settings import BRIDGE_ADDRESS, ROOT, ClusterError
from cluster.sidecars import Injection, injection_of, istio_labels, proxy_container, set_up_proxy
from cluster.volumes import PodVolumes

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence

    from cluster.messages import Launch

__all__ = ["RunningPod"]

_PODS: Final = Path("/run/test-cluster/pods")
_ADDRESSES_A_BLOCK: Final = 250
_RETRY_S: Final = 0.2
# A sidecar that outlives the containers gets this long even after the grace period.
_LAST_WORDS_S: Final = 2.0
_TOKEN_S: Final = 24 * 3600


class RunningPod:
    """One Pod of the Node.

    Args:
        pod: The Pod as it was bound.
        number: A number that no other Pod has had.
        launch: What the cluster is made of.
        api: A client of the API server.
    """

    def __init__(self, pod: Manifest, number: int, launch: Launch, api: KubeApi) -> None:
        metadata = pod["metadata"]
        self.name, self.namespace = metadata["name"], metadata["namespace"]
        block, last = divmod(number, _ADDRESSES_A_BLOCK)
        self.address = f"10.77.{block + 1}.{last + 1}"
        self._pod = pod
        self._number = number
        self._launch = launch
        self._api = api
        self._network = f"pod{number}"
        self._folder = _PODS / metadata["uid"]
        self._logs = launch.folder / "pods" / self.namespace / self.name
        self._containers: list[Container] = []
        self._first: list[Container] = []
        self._failure = ""
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._deadline = float("inf")
        self._started_at = now()
        self._ready_since: dict[str, tuple[bool, str]] = {}
        self._events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._prober_network: Network | None = None
        self._volumes = PodVolumes(launch.folder / "volumes" / metadata["uid"])
        self._place = PodPlace(self._network, self._folder, self._volumes, self._logs)

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    @property
    def is_up(self) -> bool:
        """Whether its containers were started."""
        return bool(self._containers)

    def update(self, pod: Manifest) -> None:
        """Takes a newer version of the Pod; a deleted one begins to stop."""
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            self.stop(float(metadata.get("deletionGracePeriodSeconds", 30)))

    def stop(self, grace_s: float) -> None:
        """Begins to stop it, or shortens its grace period."""
        self._deadline = min(self._deadline, time.monotonic() + grace_s)
        self._stop.set()

    def signal(self, container: str, number: signal.Signals) -> None:
        """Sends a signal to a container; without a name, to the first.

        Raises:
            ClusterError: There is no such container, or it does not run.
        """
        for each in self._containers:
            if each.spec.name == container or (not container and not each.spec.is_sidecar):
                each.send(number)
                return
        raise ClusterError(f"Pod {self.namespace}/{self.name} has no container {container!r}")

    async def execute(self, command: list[str]) -> str:
        """Runs a command in the Pod, with the environment of its first container.

        Raises:
            ClusterError: It failed; the message has its output.
        """
        own = [each.spec.env for each in self._containers if not each.spec.is_sidecar]
        env = [f"{name}={value}" for name, value in (own[0] if own else self._env()).items()]
        return await run_tool(*self._place.command(["env", "-i", *env, *command]))

    async def run(self) -> None:
        """Runs the Pod until it is deleted, and deletes it from the API server."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write_status())
            reporting = tasks.create_task(self._write_events())
            try:
                await self._live(tasks)
            except (UnsupportedPodError, ClusterError) as error:
                self._failure = str(error)
                self._report("FailedToStart", self._failure)
                self._changed.set()
            await self._stop.wait()
            await self._terminate()
            writing.cancel()
            await self._delete()
            reporting.cancel()
        await self._clean_up()

    async def _live(self, tasks: asyncio.TaskGroup) -> None:
        """Starts the containers."""
        injection = injection_of(self._pod)
        if injection is not None:
            # Before it has an address: istiod then never takes it for one without a sidecar.
            labels = istio_labels(self._pod, injection)
            await self._merge(self._path, {"metadata": {"labels": labels}})
            self._pod["metadata"].setdefault("labels", {}).update(labels)
        await add_pod_network(self._network, self._number, self.address)
        await self._write_files()
        first, specs = [], []
        if injection is not Injection.GATEWAY:
            facts = (self._pod, self.address, self._env(), ROOT)
            first, specs = init_specs(*facts), container_specs(*facts)
        mounts = [mount for each in (*first, *specs) for mount in each.mounts]
        await self._volumes.make(self._pod, (each.volume for each in mounts), self._api)
        if injection is Injection.SIDECAR:
            self._prober_network = Network.named(self._network)
        self._first = [self._container(each, restarts="OnFailure") for each in first]
        own = [self._container(each) for each in specs]
        # All of them from the start: a Pod is ready when each of its containers is.
        self._containers = own
        if injection is not None:
            await self._start_proxy(injection, tasks)
        for each in self._first:
            await self._run_first(each, tasks)
        for each in own:
            tasks.create_task(each.run())

    async def _run_first(self, container: Container, tasks: asyncio.TaskGroup) -> None:
        """Runs an init container to its end.

        Raises:
            ClusterError: The Pod is deleted before it has succeeded.
        """
        running = tasks.create_task(container.run())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not running.done() or container.exit_code != 0:
            raise ClusterError(f"init container {container.spec.name} has not succeeded")

    async def _start_proxy(self, injection: Injection, tasks: asyncio.TaskGroup) -> None:
        """Starts the proxy, and waits until it is ready."""
        folder = self._folder / "proxy"
        path = self._launch.path
        spec = proxy_container(self._pod, injection, self.address, folder, path)
        proxy = self._container(spec)
        self._containers = [proxy, *self._containers]
        await set_up_proxy(self._pod, injection, folder, self._network, self._api)
        tasks.create_task(proxy.run())
        ready = asyncio.create_task(proxy.is_ready.wait())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        stopped.cancel()
        if self._stop.is_set():
            raise ClusterError("deleted before its sidecar was ready")

    def _container(self, spec: ContainerSpec, restarts: str = "") -> Container:
        policy = self._pod["spec"].get("restartPolicy", "Always")
        return Container(
            spec,
            self._place,
            restarts if restarts and policy != "Never" else policy,
            Prober(self.address, self._prober_network, self.execute),
            self._changed.set,
            self._report,
        )

    async def _terminate(self) -> None:
        """Ends the containers, and then the sidecar."""
        own = [each for each in self._containers if not each.spec.is_sidecar] + self._first
        sidecars = [each for each in self._containers if each.spec.is_sidecar]
        for group, more_s in ((own, 0.0), (sidecars, _LAST_WORDS_S if own else 0.0)):
            async with asyncio.TaskGroup() as tasks:
                for each in group:
                    deadline = max(self._deadline, time.monotonic() + more_s)
                    tasks.create_task(each.terminate(deadline))

    async def _delete(self) -> None:
        uid = self._pod["metadata"]["uid"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        while True:
            try:
                await self._api.call("DELETE", self._path, body=body)
            except ApiError as error:
                if error.status in (404, 409):
                    return
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _clean_up(self) -> None:
        if self._prober_network is not None:
            self._prober_network.close()
        with contextlib.suppress(ClusterError):
            await remove_pod_network(self._network)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        await asyncio.to_thread(self._volumes.remove)

    def _env(self) -> dict[str, str]:
        return {
            "PATH": self._launch.path,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "HOSTNAME": self.name,
            "KUBERNETES_SERVICE_HOST": BRIDGE_ADDRESS,
            "KUBERNETES_SERVICE_PORT": str(API_PORT),
        }

    async def _write_files(self) -> None:
        """Writes what the containers find at fixed paths: token, certificate, DNS server."""
        account = self._folder / "secrets/kubernetes.io/serviceaccount"
        account.mkdir(parents=True)
        (self._folder / "root").mkdir()
        search = f"{self.namespace}.svc.cluster.local svc.cluster.local cluster.local"
        (self._folder / "resolv.conf").write_text(
            f"nameserver {BRIDGE_ADDRESS}\nsearch {search}\noptions ndots:5\n"
        )
        if self._pod["spec"].get("automountServiceAccountToken") is False:
            return
        name = self._pod["spec"].get("serviceAccountName", "default")
        token = await self._api.pod_token(self._pod, name, _TOKEN_S)
        (account / "token").write_text(token)
        (account / "namespace").write_text(self.namespace)
        shutil.copy(self._launch.folder / "apiserver.crt", account / "ca.crt")

    def _report(self, reason: str, message: str) -> None:
        self._events.put_nowait((reason, message))

    async def _write_events(self) -> None:
        metadata = self._pod["metadata"]
        while True:
            reason, message = await self._events.get()
            body = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"generateName": f"{self.name}.", "namespace": self.namespace},
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": self.name,
                    "namespace": self.namespace,
                    "uid": metadata["uid"],
                },
                "reason": reason,
                "message": message,
                "type": "Warning",
                "source": {"component": "kubelet-standin"},
                "firstTimestamp": now(),
                "lastTimestamp": now(),
            }
            with contextlib.suppress(ApiError):
                await self._api.call(
                    "POST", f"/api/v1/namespaces/{self.namespace}/events", body=body
                )

    async def _write_status(self) -> None:
        """Writes the status after each change, also after the API server was away."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._merge(f"{self._path}/status", {"status": self._status()})

    async def _merge(self, path: str, body: dict[str, Any]) -> None:
        """Patches the Pod, as often as it takes, unless it is gone."""
        while True:
            try:
                content = "application/merge-patch+json"
                await self._api.call("PATCH", path, body=body, content=content)
            except ApiError as error:
                if error.status in (404, 422):
                    return
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def _status(self) -> dict[str, Any]:
        states = [each.status for each in self._containers]
        waiting = [each["name"] for each in states if not each["ready"]]
        ready = bool(states) and not waiting
        pending = [each.spec.name for each in self._first if each.exit_code != 0]
        conditions = [
            self._condition("PodScheduled", met=True),
            self._condition("Initialized", met=not pending, waiting=pending),
            self._condition("ContainersReady", met=ready, waiting=waiting),
            self._condition("Ready", met=ready, waiting=waiting),
        ]
        # Not the sidecar, which the Pod does not name: `kubectl` would count it as one too many.
        named = [each.status for each in self._containers if not each.spec.is_sidecar]
        addresses = {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        return {
            "phase": self._phase(),
            "reason": "Unsupported" if self._failure else None,
            "message": self._failure or None,
            "conditions": conditions,
            "containerStatuses": named,
            "initContainerStatuses": [each.status for each in self._first],
            "hostIP": BRIDGE_ADDRESS,
            "startTime": self._started_at,
            **(addresses if states else {}),
        }

    def _phase(self) -> str:
        if self._failure:
            return "Failed"
        states = [each.status["state"] for each in self._containers if not each.spec.is_sidecar]
        restarts = self._pod["spec"].get("restartPolicy", "Always")
        if states and all("terminated" in each for each in states) and restarts != "Always":
            codes = [each["terminated"]["exitCode"] for each in states]
            return "Failed" if any(codes) else "Succeeded"
        return "Running" if any("waiting" not in each for each in states) else "Pending"

    def _condition(
        self, kind: str, *, met: bool, waiting: Sequence[str] = ()
    ) -> dict[str, str | None]:
        before, since = self._ready_since.get(kind, (not met, ""))
        if before != met:
            since = now()
            self._ready_since[kind] = (met, since)
        message = f"not ready: {', '.join(waiting)}" if waiting else None
        return {"type": kind, "status": str(met), "lastTransitionTime": since, "message": message}
