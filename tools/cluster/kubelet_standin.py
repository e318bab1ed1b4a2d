"""A stand-in for the kubelet, and for the scheduler: Pods become processes of this machine.

It binds Pods to its one Node, gives each a network namespace and an address, and runs the commands
of their containers there, with init containers, volumes, users, probes, restarts, `preStop`,
SIGTERM and the grace period. It knows no images: containers see the machine's files. A Pod that
asks for more fails, and its status says so.
"""

from __future__ import annotations

import asyncio
import itertools
import traceback
from typing import TYPE_CHECKING

from cluster.kube_api import ApiError, KubeApi, Manifest
from cluster.objects import node_status
from cluster.pods import RunningPod
from cluster.settings import NODE_NAME, ClusterError

if TYPE_CHECKING:
    import signal

    from cluster.messages import Launch

__all__ = ["KubeletStandIn"]

_RETRY_S = 0.2
_ENDED = frozenset({"Succeeded", "Failed"})


class KubeletStandIn:
    """The Pods of the Node.

    Args:
        launch: What the cluster is made of.
        api: A client of the API server.
        tasks: Owns the tasks of the Pods.
    """

    def __init__(self, launch: Launch, api: KubeApi, tasks: asyncio.TaskGroup) -> None:
        self._launch = launch
        self._api = api
        self._tasks = tasks
        self._numbers = itertools.count()
        self._pods: dict[str, RunningPod] = {}
        self._bound: set[str] = set()

    async def run(self) -> None:
        """Runs the Pods; never returns."""
        content = "application/merge-patch+json"
        path, body = f"/api/v1/nodes/{NODE_NAME}/status", {"status": node_status()}
        await self._api.call("PATCH", path, body=body, content=content)
        async for seen in self._api.watch("/api/v1/pods"):
            uid = seen.uid
            if seen.deleted:
                self._bound.discard(uid)
                if uid in self._pods:
                    self._pods[uid].stop(0.0)
            elif uid in self._pods:
                self._pods[uid].update(seen.manifest)
            else:
                self._take(seen.manifest, uid)

    def is_running(self, namespace: str, name: str) -> bool:
        """Whether a Pod runs, or ends just now."""
        return any((each.namespace, each.name) == (namespace, name) for each in self._pods.values())

    def address(self, namespace: str, name: str) -> str:
        """The address of a Pod.

        Raises:
            ClusterError: No such Pod runs.
        """
        return self._pod(namespace, name).address

    async def execute(self, namespace: str, name: str, command: list[str]) -> str:
        """Runs a command in a Pod.

        Raises:
            ClusterError: No such Pod runs, or the command failed.
        """
        return await self._pod(namespace, name).execute(command)

    def signal(self, namespace: str, name: str, container: str, number: signal.Signals) -> None:
        """Sends a signal to a container of a Pod.

        Raises:
            ClusterError: No such container runs.
        """
        self._pod(namespace, name).signal(container, number)

    def _pod(self, namespace: str, name: str) -> RunningPod:
        for each in self._pods.values():
            if (each.namespace, each.name) == (namespace, name):
                return each
        raise ClusterError(f"no Pod {namespace}/{name} runs")

    def _take(self, pod: Manifest, uid: str) -> None:
        node = pod["spec"].get("nodeName", "")
        if not node:
            if uid not in self._bound and not pod["spec"].get("schedulingGates"):
                self._bound.add(uid)
                self._tasks.create_task(self._bind(pod, uid))
        elif node == NODE_NAME and pod.get("status", {}).get("phase") not in _ENDED:
            self._tasks.create_task(self._run_pod(pod, uid))

    async def _run_pod(self, pod: Manifest, uid: str) -> None:
        running = RunningPod(pod, next(self._numbers), self._launch, self._api)
        self._pods[uid] = running
        running.update(pod)
        try:
            await running.run()
        except Exception:  # noqa: BLE001 - one Pod ends; the log of the cluster says why
            traceback.print_exc()
        finally:
            del self._pods[uid]

    async def _bind(self, pod: Manifest, uid: str) -> None:
        metadata = pod["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": metadata["name"], "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE_NAME},
        }
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/binding"
        try:
            await self._api.call("POST", path, body=body)
        except ApiError as error:
            # Gone, or bound by an attempt whose answer was lost: the watch shows it.
            if error.status not in (404, 409):
                await asyncio.sleep(_RETRY_S)
                self._tasks.create_task(self._bind(pod, uid))
