"""Measures what many rollouts cost each controller, on one real API server.

For each number of rollouts, one controller after the other starts, takes more rollouts to their
first step, and waits there: each has written a weight of 10 % and needs nobody. Then the benchmark
measures a quiet time, edits of single Rollouts, and a restart. It reads requests from the audit log
of the API server. Pods are objects only, and no proxy runs, so that the numbers are those of the
controllers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from api_requests import AuditLog
from controllers import Argo, Controller, Tidegate
from installing import CRDS, install_argo_crds, until_served
from objects import (
    ARGO_NAMESPACE,
    ARGO_ROLLOUTS,
    REPLICA_SETS,
    TIDEGATE_NAMESPACE,
    argo_objects,
    argo_template,
    last_weight,
    rollout_name,
    tidegate_objects,
)

from cluster import ClusterSettings, TestCluster
from cluster.manifests import read_manifests
from cluster.settings import ROOT
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import ConflictError, KubeError
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENDPOINT_SLICES,
    LEASES,
    PODS,
    ROLLOUTS,
    SERVICES,
    VIRTUAL_SERVICES,
    Manifest,
    Resource,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.console import Console

__all__ = ["Handover", "Measured", "measure_scale"]

CONTROLLERS: Final = (Tidegate, Argo)
_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount", Manifest)
_RESOURCES: Final[Mapping[tuple[str, str], Resource[Any]]] = {
    (each.group, each.kind): each
    for each in (
        *(ARGO_ROLLOUTS, ROLLOUTS, VIRTUAL_SERVICES, DESTINATION_RULES),
        *(SERVICES, ENDPOINT_SLICES, PODS),
    )
}
_AT_ONCE: Final = 16
_POLL_S: Final = 0.05
_SETTLE_S: Final = 1800.0
_EDIT_S: Final = 60.0
_CALM_S: Final = 5.0
_CALM_REQUESTS: Final = 5
_LEAD_S: Final = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What some rollouts cost one controller.

    Attributes:
        controller: Its name.
        rollouts: How many.
        set_up_s: How long the new ones took to their first step.
        set_up_rollouts: How many were new.
        set_up_cpu_s: Its processor time for that, per new rollout.
        set_up_requests: Its API requests for that, per new rollout.
        quiet_s: How long it was measured while nothing happened.
        cores: Processor time in the quiet time, in cores.
        rss_mb: Resident memory after it.
        requests_per_s: API requests in it.
        requests: These requests by verb and resource.
        edits: Edits that were measured.
        edit_p50_s: From an edit to `status.observedGeneration`, half of the edits.
        edit_p95_s: The same, 95 % of the edits.
        stop_s: From SIGTERM to the end of the process.
        restart_s: From the start of the next process until all rollouts are evaluated.
        restart_cpu_s: Its processor time until then.
        restart_rss_mb: Its resident memory then.
        restart_requests: Its API requests until then.
    """

    controller: str
    rollouts: int
    set_up_s: float
    set_up_rollouts: int
    set_up_cpu_s: float
    set_up_requests: float
    quiet_s: float
    cores: float
    rss_mb: float
    requests_per_s: float
    requests: dict[str, int]
    edits: int
    edit_p50_s: float
    edit_p95_s: float
    stop_s: float
    restart_s: float
    restart_cpu_s: float
    restart_rss_mb: float
    restart_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """How long nobody led after SIGTERM, while a second replica waited.

    Attributes:
        controller: Its name.
        seconds: One time for each try.
    """

    controller: str
    seconds: tuple[float, ...]


class Generations:
    """Follows `status.observedGeneration` of all objects of a resource."""

    def __init__(self, client: KubeClient, resource: Resource[Manifest], namespace: str) -> None:
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._seen: dict[str, tuple[int, float]] = {}
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Follows them until the task is cancelled."""
        while True:
            with contextlib.suppress(KubeError):
                watch = self._client.watch(self._resource, self._namespace, initial_events=True)
                async with contextlib.aclosing(watch) as events:
                    async for event in events:
                        self._note(event.object)

    def _note(self, manifest: Manifest) -> None:
        # Argo Rollouts writes it as text.
        observed = int(manifest.status.get("observedGeneration") or 0)
        name = manifest.metadata.name
        if observed > self._seen.get(name, (0, 0.0))[0]:
            self._seen[name] = (observed, time.monotonic())
            self._changed.set()

    async def until(self, name: str, generation: int) -> float:
        """Waits until a generation is observed; returns when, by the monotonic clock."""
        while self._seen.get(name, (0, 0.0))[0] < generation:
            self._changed.clear()
            await self._changed.wait()
        return self._seen[name][1]


class ScaleBench:
    """The measurement on one API server.

    Args:
        client: The administrator's, as the benchmark uses it.
        audit: The API server's audit log.
        kubeconfig: The administrator's.
        folder: A folder for the logs of the controllers.
        quiet_s: How long the quiet time is.
        edits: How many Rollouts are edited.
    """

    def __init__(
        self,
        client: KubeClient,
        audit: AuditLog,
        kubeconfig: Path,
        folder: Path,
        quiet_s: float,
        edits: int,
    ) -> None:
        self._client = client
        self._audit = audit
        self._kubeconfig = kubeconfig
        self._folder = folder
        self._quiet_s = quiet_s
        self._edits = edits
        self._weights = itertools.cycle((60, 70, 80))

    async def measure(self, kind: type[Controller], before: int, count: int) -> Measured:
        """Measures one controller with so many rollouts, of which some exist already."""
        controller = kind(self._kubeconfig, self._folder)
        controller.start()
        try:
            return await self._measure(controller, before, count)
        finally:
            controller.kill()

    async def _measure(self, controller: Controller, before: int, count: int) -> Measured:
        await self._until_leads(controller)
        await controller.until_evaluated(before, _SETTLE_S)
        began = controller.usage()
        await self._add(controller, before, count)
        added = controller.usage()
        await self._until_calm(controller)
        first = controller.usage()
        await asyncio.sleep(self._quiet_s)
        last = controller.usage()
        took_s = await self._edit(controller, count)
        stop_s = await controller.stop()
        controller.start()
        started_s = time.time()
        restart_s = await controller.until_evaluated(count, _SETTLE_S)
        again = controller.usage()

        agent, new = controller.agent, count - before
        quiet_s = last.at_s - first.at_s
        requests = self._audit.count(agent, first.at_s, last.at_s)
        return Measured(
            controller=controller.title,
            rollouts=count,
            set_up_s=added.at_s - began.at_s,
            set_up_rollouts=new,
            set_up_cpu_s=(added.cpu_s - began.cpu_s) / new,
            set_up_requests=self._audit.count(agent, began.at_s, added.at_s).total() / new,
            quiet_s=quiet_s,
            cores=(last.cpu_s - first.cpu_s) / quiet_s,
            rss_mb=last.rss_mb,
            requests_per_s=requests.total() / quiet_s,
            requests=dict(requests.most_common()),
            edits=len(took_s),
            edit_p50_s=statistics.median(took_s),
            edit_p95_s=sorted(took_s)[int(0.95 * (len(took_s) - 1))],
            stop_s=stop_s,
            restart_s=restart_s,
            restart_cpu_s=again.cpu_s,
            restart_rss_mb=again.rss_mb,
            restart_requests=self._audit.count(agent, started_s, again.at_s).total(),
        )

    async def handover(self, kind: type[Controller], tries: int) -> Handover:
        """Measures how long nobody leads after SIGTERM to one of two replicas."""
        # Names of replicas that no earlier try has used.
        names = (f"r{number}" for number in itertools.count())
        leader = kind(self._kubeconfig, self._folder, next(names))
        running = [leader]
        seconds = []
        try:
            leader.start()
            await self._until_leads(leader)
            for _ in range(tries):
                other = kind(self._kubeconfig, self._folder, next(names))
                running.append(other)
                other.start()
                async with asyncio.timeout(_LEAD_S):
                    while not other.is_waiting():  # noqa: ASYNC110 - nothing tells it
                        await asyncio.sleep(_POLL_S)
                held = await self._holder(kind)
                began_s = time.monotonic()
                leader.terminate()
                async with asyncio.timeout(_LEAD_S):
                    while await self._holder(kind) in ("", held):  # noqa: ASYNC110 - nothing tells it
                        await asyncio.sleep(_POLL_S)
                seconds.append(time.monotonic() - began_s)
                await leader.stop()
                leader = other
        finally:
            for each in running:
                each.kill()
        return Handover(controller=kind.title, seconds=tuple(seconds))

    async def _until_calm(self, controller: Controller) -> None:
        """Waits until it has no more to say about the set-up: both write Events at a low rate."""
        async with asyncio.timeout(_SETTLE_S):
            while True:
                since_s = time.time()
                await asyncio.sleep(_CALM_S)
                requests = self._audit.count(controller.agent, since_s, time.time())
                if requests.total() <= _CALM_REQUESTS:
                    return

    async def _until_leads(self, controller: Controller) -> None:
        """Waits until its process leads, which a lease of an earlier one may delay."""
        started_s = time.time()
        async with asyncio.timeout(_LEAD_S):
            while True:
                controller.usage()
                with contextlib.suppress(KubeError):
                    namespace, name = controller.lease
                    lease = await self._client.get(LEASES, name, namespace)
                    renewed = lease.spec.renew_time
                    if lease.spec.holder_identity and renewed and _epoch_s(renewed) > started_s:
                        return
                await asyncio.sleep(_POLL_S)

    async def _holder(self, kind: type[Controller]) -> str:
        namespace, name = kind.lease
        return (await self._client.get(LEASES, name, namespace)).spec.holder_identity

    async def _add(self, controller: Controller, before: int, count: int) -> None:
        """Makes rollouts, and waits until all of them are at their first step."""
        numbers = range(before, count)
        if controller.namespace == TIDEGATE_NAMESPACE:
            await self._create([tidegate_objects(each) for each in numbers])
            await self._until_all(ROLLOUTS, TIDEGATE_NAMESPACE, count, _waits)
            return
        await self._create([argo_objects(each) for each in numbers])
        await self._until_all(
            ARGO_ROLLOUTS, ARGO_NAMESPACE, count, lambda each: _argo_phase(each) != "Progressing"
        )
        patches = {
            rollout_name(each): {"spec": {"template": argo_template(each, "v2")}}
            for each in numbers
        }
        await self._at_once(
            [
                lambda name=name, patch=patch: self._merge(
                    ARGO_ROLLOUTS, name, ARGO_NAMESPACE, patch
                )
                for name, patch in patches.items()
            ]
        )
        await self._until_all(ARGO_ROLLOUTS, ARGO_NAMESPACE, count, _argo_waits)

    async def _create(self, hosts: list[list[Mapping[str, Any]]]) -> None:
        async def make(bodies: list[Mapping[str, Any]]) -> None:
            for body in bodies:
                group = body["apiVersion"].rpartition("/")[0]
                resource = _RESOURCES[group, body["kind"]]
                await self._client.create(resource, body, body["metadata"]["namespace"])

        await self._at_once([lambda bodies=bodies: make(bodies) for bodies in hosts])

    async def _at_once(self, calls: list[Callable[[], Any]]) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def run(call: Callable[[], Any]) -> None:
            async with limit:
                await call()

        async with asyncio.TaskGroup() as tasks:
            for call in calls:
                tasks.create_task(run(call))

    async def _merge(
        self, resource: Resource[Manifest], name: str, namespace: str, patch: Mapping[str, Any]
    ) -> Manifest:
        while True:
            with contextlib.suppress(ConflictError):
                return await self._client.merge(resource, name, namespace, patch, manager="user")

    async def _until_all(
        self,
        resource: Resource[Manifest],
        namespace: str,
        count: int,
        holds: Callable[[Manifest], bool],
    ) -> None:
        try:
            async with asyncio.timeout(_SETTLE_S):
                while True:
                    items = (await self._client.list(resource, namespace)).items
                    waiting = [each for each in items if not holds(each)]
                    if len(items) == count and not waiting:
                        return
                    # Lists cost the API server more, the more there are.
                    await asyncio.sleep(0.2 + count / 500)
        except TimeoutError:
            raise RuntimeError(
                f"{len(waiting)} of {count} {resource.plural} of {namespace} do not get to their"
                f" first step; one is {waiting[0].status}"
            ) from None

    async def _edit(self, controller: Controller, count: int) -> list[float]:
        """Edits Rollouts, one after another; returns the seconds until each edit is observed."""
        is_ours = controller.namespace == TIDEGATE_NAMESPACE
        resource: Resource[Manifest] = ROLLOUTS if is_ours else ARGO_ROLLOUTS
        generations = Generations(self._client, resource, controller.namespace)
        following = asyncio.create_task(generations.follow())
        weight, took_s = next(self._weights), []
        try:
            for number in range(min(count, self._edits)):
                name = rollout_name(number * count // min(count, self._edits))
                began_s = time.monotonic()
                edited = await self._merge(
                    resource, name, controller.namespace, last_weight(controller.namespace, weight)
                )
                async with asyncio.timeout(_EDIT_S):
                    seen_s = await generations.until(name, edited.metadata.generation)
                took_s.append(seen_s - began_s)
        finally:
            following.cancel()
        await self._until_all(
            resource, controller.namespace, count, _waits if is_ours else _argo_waits
        )
        return took_s


async def measure_scale(
    folder: Path,
    sizes: tuple[int, ...],
    *,
    quiet_s: float,
    edits: int,
    handovers: int,
    console: Console,
) -> tuple[list[Measured], list[Handover]]:
    """Measures both controllers at each size.

    Args:
        folder: A folder for the cluster.
        sizes: Numbers of rollouts, ascending.
        quiet_s: How long each quiet time is.
        edits: How many Rollouts are edited, at most.
        handovers: How often a leader is ended while another replica waits.
        console: Shows what happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    audit = AuditLog(folder)
    settings = ClusterSettings(
        namespaces=(TIDEGATE_NAMESPACE, ARGO_NAMESPACE, "tidegate-system", "argo-rollouts"),
        controllers=False,
        istio=False,
        api_server_options=audit.options,
    )
    async with (
        TestCluster.running(folder / "cluster", settings) as cluster,
        KubeClient.opened(kubeconfig=cluster.kubeconfig, user_agent="benchmark") as client,
        asyncio.TaskGroup() as tasks,
    ):
        await _install(client)
        pods = tasks.create_task(_answer_for_replica_sets(client))
        bench = ScaleBench(client, audit, cluster.kubeconfig, folder, quiet_s, edits)
        found, before = [], 0
        for size in sizes:
            for kind in CONTROLLERS:
                with console.status(f"{size:,} rollouts of {kind.title}"):
                    found.append(await bench.measure(kind, before, size))
                console.print(f"   {found[-1]}")
            before = size
        gaps = []
        for kind in CONTROLLERS:
            with console.status(f"another leader of {kind.title}"):
                gaps.append(await bench.handover(kind, handovers))
        pods.cancel()
        return found, gaps


async def _install(client: KubeClient) -> None:
    """Creates the CRDs of both controllers, and waits until they are served."""
    # Pods need one, and no controller makes it here.
    await client.create(_ACCOUNTS, {"metadata": {"name": "default"}}, TIDEGATE_NAMESPACE)
    for each in read_manifests(ROOT / "mesh/istio/base/crds/rollouts.yaml"):
        await client.apply(CRDS, each, manager="install")
    await until_served(client)
    await install_argo_crds(client)


async def _answer_for_replica_sets(client: KubeClient) -> None:
    """Says of each ReplicaSet that its Pods are available: there is no Node to run them."""
    while True:
        with contextlib.suppress(KubeError):
            watch = client.watch(REPLICA_SETS, ARGO_NAMESPACE, initial_events=True)
            async with contextlib.aclosing(watch) as events:
                async for event in events:
                    await _answer(client, event.object)


async def _answer(client: KubeClient, manifest: Manifest) -> None:
    if not manifest.spec:
        return
    metadata, wanted = manifest.metadata, manifest.spec.get("replicas", 1)
    status = {
        "replicas": wanted,
        "fullyLabeledReplicas": wanted,
        "readyReplicas": wanted,
        "availableReplicas": wanted,
        "observedGeneration": metadata.generation,
    }
    said = {name: manifest.status.get(name, 0) for name in status}
    if said != status:
        await client.merge(
            *(REPLICA_SETS, metadata.name, metadata.namespace, {"status": status}),
            manager="kubelet",
            subresource="status",
        )


def _waits(manifest: Manifest) -> bool:
    """Whether a Rollout of Tidegate is at its first step, and its split in force."""
    status = manifest.status
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    return status.get("step") == "1/2" and conditions.get("InForce") == "True"


def _argo_phase(manifest: Manifest) -> str:
    return str(manifest.status.get("phase", "Progressing"))


def _argo_waits(manifest: Manifest) -> bool:
    """Whether a Rollout of Argo Rollouts is at its pause, and its weight written."""
    status = manifest.status
    weights = status.get("canary", {}).get("weights", {}).get("canary", {})
    return (
        _argo_phase(manifest) == "Paused"
        and status.get("currentStepIndex") == 1
        and weights.get("weight") == 10
    )


def _epoch_s(time_of: Any) -> float:
    return float(time_of.timestamp()) if hasattr(time_of, "timestamp") else float(time_of)
