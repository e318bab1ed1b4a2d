"""A host on a real API server, and a rollout of it: what a test of `ClusterTraffic` stands on.

host = ClusterHost(client, namespace)
await host.make(ready={"v1": 3, "v2": 3})
await host.apply(virtual_service(…), manager="git")
traffic = host.traffic()  # a TrafficRouter of a rollout, as a new process has it
"""

import contextlib
import copy

import cluster_objects
import msgspec
from traffic_observer_double import TrafficObserverDouble

from tidegate.kube.errors import NotFoundError
from tidegate.kube.reflector import reflecting
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENDPOINT_SLICES,
    ENVOY_FILTERS,
    PODS,
    SERVICES,
    VIRTUAL_SERVICES,
    Manifest,
    Resource,
)
from tidegate.rollout.traffic import TrafficSplit
from tidegate.traffic.cluster.caches import (
    DESTINATION_RULE_INDEXES,
    ENDPOINT_SLICE_INDEXES,
    VIRTUAL_SERVICE_INDEXES,
    CachedObjects,
)
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.objects import DirectObjects
from tidegate.traffic.cluster.surroundings import ClusterTrafficSettings

RESOURCES = {"VirtualService": VIRTUAL_SERVICES, "DestinationRule": DESTINATION_RULES}
WAIT_S = 20.0
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount", Manifest)
SETTINGS = ClusterTrafficSettings(settle_s=1.0, subset_settle_s=0.0)


class ClusterHost:
    """The host ``vision`` of one namespace.

    Attributes:
        client: The API server.
        namespace: The namespace.
        observer: Tells when changes are in force.
        filter_namespaces: Where EnvoyFilters may be written that keep users on a version.
    """

    def __init__(self, client, namespace):
        self.client = client
        self.namespace = namespace
        self.observer = TrafficObserverDouble()
        self.filter_namespaces = ()

    @property
    def name(self):
        return f"vision.{self.namespace}.svc.cluster.local"

    async def make(self, ready, waiting=None, ports=(cluster_objects.PORT,)):
        """Makes the Service, its Pods and its endpoints."""
        # No controller makes it here, and Pods need one.
        await self.client.create(
            SERVICE_ACCOUNTS, {"metadata": {"name": "default"}}, self.namespace
        )
        await self.client.create(SERVICES, cluster_objects.service(self.namespace, ports))
        await self.scale(ready, waiting)

    async def scale(self, ready, waiting=None):
        """Gives the Service other endpoints."""
        waiting = waiting or {}
        counts = {each: ready.get(each, 0) + waiting.get(each, 0) for each in {**ready, **waiting}}
        for each in cluster_objects.pods(self.namespace, **counts):
            await self.client.apply(PODS, each, manager="kubelet", force=True)
        made = cluster_objects.endpoint_slice(self.namespace, ready=ready, waiting=waiting)
        await self.client.apply(ENDPOINT_SLICES, made, manager="endpoints", force=True)

    async def remove_pods(self, version):
        for each in (await self.client.list(PODS, self.namespace)).items:
            if each.metadata.labels["version"] == version:
                await self.client.delete(PODS, each.metadata.name, self.namespace)

    async def apply(self, item, manager="git", *, force=False):
        """Applies an object on the server, as GitOps tools do."""
        item = copy.deepcopy(item)
        item["metadata"]["namespace"] = self.namespace
        return await self.client.apply(RESOURCES[item["kind"]], item, manager=manager, force=force)

    def traffic(self, write="patch", observer=None, **spec):
        """What reads and changes the traffic of a rollout, as a new process would have it."""
        rollout = cluster_objects.rollout(write, namespace=self.namespace, **spec)
        return self.process(observer).of(rollout)

    def process(self, observer=None, settings=SETTINGS):
        """The traffic of all rollouts, as a new process would have it."""
        objects = DirectObjects(self.client, self.filter_namespaces)
        return ClusterTraffic(self.client, objects, observer or self.observer, settings)

    async def service(self, name="vision"):
        """The VirtualService as the server has it; None if it has gone."""
        try:
            return await self.client.get(VIRTUAL_SERVICES, name, self.namespace)
        except NotFoundError:
            return None

    async def rule(self, name="vision"):
        return await self.client.get(DESTINATION_RULES, name, self.namespace)

    async def rules(self):
        return (await self.client.list(DESTINATION_RULES, self.namespace)).items

    async def subsets(self):
        """The names of the subsets in the host's rule."""
        return [each["name"] for each in (await self.rule()).spec["subsets"]]

    async def filters(self):
        """The EnvoyFilters of Tidegate's, by namespace; None where there is none."""
        found = {}
        for namespace in self.filter_namespaces:
            listed = await self.client.list(ENVOY_FILTERS, namespace)
            (found[namespace],) = listed.items or (None,)
        return found

    async def weights(self, name="vision", route=-1):
        """The weights of a route of the VirtualService, by subset."""
        found = await self.service(name)
        return {
            each["destination"]["subset"]: each.get("weight", 100)
            for each in found.spec["http"][route]["route"]
        }

    async def edit(self, change, name="vision"):
        """Changes the VirtualService by hand, as `kubectl edit` does."""
        found = await self.service(name)
        body = msgspec.to_builtins(found)
        body.pop("status", None)
        change(body)
        await self.client.replace(VIRTUAL_SERVICES, body, self.namespace, manager="kubectl-edit")

    async def delete(self, name="vision"):
        await self.client.delete(VIRTUAL_SERVICES, name, self.namespace)


@contextlib.asynccontextmanager
async def caches(client, *namespaces, filters=()):
    """What a controller's caches know of namespaces, with EnvoyFilters of some others."""
    resources = {
        "virtual_services": (VIRTUAL_SERVICES, VIRTUAL_SERVICE_INDEXES, namespaces),
        "destination_rules": (DESTINATION_RULES, DESTINATION_RULE_INDEXES, namespaces),
        "services": (SERVICES, {}, namespaces),
        "endpoint_slices": (ENDPOINT_SLICES, ENDPOINT_SLICE_INDEXES, namespaces),
        "pods": (PODS, {}, namespaces),
    }
    if filters:
        resources["envoy_filters"] = (ENVOY_FILTERS, {}, filters)
    async with contextlib.AsyncExitStack() as stack:
        found = {
            name: await stack.enter_async_context(
                reflecting(client, resource, where, indexes=indexes)
            )
            for name, (resource, indexes, where) in resources.items()
        }
        for each in found.values():
            await each.synced()
        yield CachedObjects(**found, filter_namespaces=tuple(filters), timeout_s=WAIT_S)


def split(**weights):
    return TrafficSplit(weights={name: float(each) for name, each in weights.items()})
