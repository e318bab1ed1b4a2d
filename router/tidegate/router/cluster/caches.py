"""The objects that the router follows, each kind in a cache that a reflector fills."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.errors import TidegateError
from tidegate.kube.cache import ALL_NAMESPACES, ObjectCache
from tidegate.kube.client import KubeClient
from tidegate.kube.reflector import reflecting
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENDPOINT_SLICES,
    ENVOY_FILTERS,
    PODS,
    ROLLOUTS,
    SERVICES,
    VIRTUAL_SERVICES,
    EndpointSlice,
    Manifest,
)
from tidegate.router.crd_store import CATCH_UP_S
from tidegate.traffic.cluster.caches import (
    DESTINATION_RULE_INDEXES,
    ENDPOINT_SLICE_INDEXES,
    VIRTUAL_SERVICE_INDEXES,
    CachedObjects,
)

__all__ = ["BehindError", "Caches", "following", "replica_addresses"]

_SERVICE_NAME: Final = "kubernetes.io/service-name"


class BehindError(TidegateError):
    """A cache does not show what the API server has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """What the router follows.

    Attributes:
        rollouts: The Rollouts.
        traffic: What carries their traffic.
        replicas: The EndpointSlices of the router's own Service; None if it has none.
    """

    rollouts: ObjectCache[Manifest]
    traffic: CachedObjects
    replicas: ObjectCache[EndpointSlice] | None

    async def synced(self) -> None:
        """Waits until all caches have been filled once."""
        traffic = self.traffic
        await asyncio.gather(
            self.rollouts.synced(),
            traffic.virtual_services.synced(),
            traffic.destination_rules.synced(),
            traffic.services.synced(),
            traffic.endpoint_slices.synced(),
            traffic.pods.synced(),
            *(() if traffic.envoy_filters is None else (traffic.envoy_filters.synced(),)),
            *(() if self.replicas is None else (self.replicas.synced(),)),
        )

    async def show_all(self, client: KubeClient, namespaces: Sequence[str]) -> None:
        """Waits until the routes of the cluster are those that the API server has now.

        A watch may be silent for a minute without anybody knowing. Whoever begins to lead with
        routes of before would take the last leader's writes for those of somebody else.

        Args:
            client: The API server.
            namespaces: Where the rollouts and their traffic are; all namespaces if there is none.

        Raises:
            KubeError: The API server does not answer.
            BehindError: A cache does not show them in time.
        """
        traffic = self.traffic
        for resource, cache in (
            (VIRTUAL_SERVICES, traffic.virtual_services),
            (DESTINATION_RULES, traffic.destination_rules),
        ):
            for namespace in tuple(namespaces) or (ALL_NAMESPACES,):
                items = (await client.list(resource, namespace)).items
                newest = max((each.version for each in items), default=0)
                if not await cache.reaches(str(newest), CATCH_UP_S, namespace):
                    raise BehindError(
                        f"the watch of {resource.plural} has not shown the last changes for"
                        f" {CATCH_UP_S:g} s; it is opened again once it has been silent for long"
                        " enough"
                    )


@contextlib.asynccontextmanager
async def following(
    client: KubeClient,
    namespaces: Sequence[str],
    own_namespace: str,
    service: str,
    sticky_namespaces: Sequence[str] = (),
) -> AsyncIterator[Caches]:
    """Follows the objects while the context is open.

    Args:
        client: The API server.
        namespaces: Where the rollouts and their traffic are; all namespaces if there is none.
        own_namespace: Where the router's own Service is.
        service: The router's own Service; empty if it has none.
        sticky_namespaces: Where EnvoyFilters that keep users on a version may be written.
    """
    where = tuple(namespaces) or (ALL_NAMESPACES,)
    filter_namespaces = tuple(dict.fromkeys(sticky_namespaces))
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        traffic = CachedObjects(
            virtual_services=await enter(
                reflecting(client, VIRTUAL_SERVICES, where, indexes=VIRTUAL_SERVICE_INDEXES)
            ),
            destination_rules=await enter(
                reflecting(client, DESTINATION_RULES, where, indexes=DESTINATION_RULE_INDEXES)
            ),
            services=await enter(reflecting(client, SERVICES, where)),
            endpoint_slices=await enter(
                reflecting(client, ENDPOINT_SLICES, where, indexes=ENDPOINT_SLICE_INDEXES)
            ),
            pods=await enter(reflecting(client, PODS, where)),
            envoy_filters=await enter(reflecting(client, ENVOY_FILTERS, filter_namespaces))
            if filter_namespaces
            else None,
            filter_namespaces=filter_namespaces,
        )
        replicas = None
        if service:
            selector = f"{_SERVICE_NAME}={service}"
            slices = reflecting(client, ENDPOINT_SLICES, (own_namespace,), label_selector=selector)
            replicas = await enter(slices)
        rollouts = await enter(reflecting(client, ROLLOUTS, where))
        yield Caches(rollouts=rollouts, traffic=traffic, replicas=replicas)


def replica_addresses(slices: Sequence[EndpointSlice], port: int) -> tuple[str, ...]:
    """Returns where the router's replicas serve, as ``address:port``, in order.

    One that is not ready, or terminates, may have records that nobody has read.

    Args:
        slices: The EndpointSlices of the router's Service.
        port: The port of their gRPC servers.
    """
    addresses = {
        address for each in slices for endpoint in each.endpoints for address in endpoint.addresses
    }
    return tuple(
        f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in sorted(addresses)
    )
