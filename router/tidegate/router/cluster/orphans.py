"""Hands back the traffic of rollouts that vanished while nobody led.

A finalizer holds a deleted Rollout until its traffic is handed back. Only an object that is lost
otherwise, because etcd was restored or somebody removed the finalizer, leaves its split behind. A
leader that sees it vanish hands the traffic back; for what vanished before, a new leader looks at
the VirtualServices: each names the rollout that owns it, and the baseline that carried all traffic.

An EnvoyFilter is written before the VirtualService names its rollout. If both the router and the
Rollout are gone then, no VirtualService leads to it, so the new leader looks at EnvoyFilters too.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tidegate.istio import full_host_name
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError, NotFoundError
from tidegate.kube.resources import ENVOY_FILTERS, ROLLOUTS, Manifest
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.spec.reading import rollout_of_values
from tidegate.rollout.traffic import TrafficSplit
from tidegate.runtime.logging import get_logger
from tidegate.traffic.cluster.owned_objects import (
    CAPACITY_ANNOTATION,
    ROLLOUT_ANNOTATION,
    is_ours,
)
from tidegate.traffic.router import TrafficError, TrafficRouter

__all__ = ["hand_back_orphans", "remove_unused_filters", "stand_ins"]

_log = get_logger(__name__)

_AGAIN_S: Final = 5.0


async def hand_back_orphans(
    client: KubeClient,
    services: Iterable[Manifest],
    traffic_of: Callable[[Rollout], TrafficRouter],
) -> None:
    """Hands back the traffic of rollouts that do not exist any more; returns once that is done.

    Args:
        client: The API server.
        services: The VirtualServices.
        traffic_of: Gives what changes the traffic of a rollout.
    """
    left = [(each, rollout) for each in services for rollout in stand_ins(each)]
    while left:
        left = [each for each in left if not await _is_done(client, *each, traffic_of)]
        if left:
            await asyncio.sleep(_AGAIN_S)


async def remove_unused_filters(
    client: KubeClient, filters: Iterable[Manifest], services: Iterable[Manifest]
) -> None:
    """Deletes the EnvoyFilters of rollouts that do not exist any more and own no traffic.

    Args:
        client: The API server.
        filters: The EnvoyFilters.
        services: The VirtualServices; those that a rollout owns are handed back with their filters.
    """
    owners = {each.metadata.annotations.get(ROLLOUT_ANNOTATION) for each in services}
    for each in filters:
        metadata = each.metadata
        owner = metadata.annotations.get(ROLLOUT_ANNOTATION, "")
        namespace, _, name = owner.partition("/")
        if not is_ours(each) or not name or owner in owners:
            continue
        try:
            if await _exists(client, name, namespace):
                continue
            await client.delete(ENVOY_FILTERS, metadata.name, metadata.namespace, uid=metadata.uid)
        except KubeError as error:
            _log.warning("envoy filter not removed", envoy_filter=each.key, error=str(error))
        else:
            _log.warning(
                "envoy filter of a rollout that does not exist is removed",
                envoy_filter=each.key,
                rollout=owner,
            )


def stand_ins(service: Manifest) -> Iterator[Rollout]:
    """Returns a rollout for each host of a VirtualService that a rollout owns.

    It has what is needed to hand the traffic back: the owner's name, the host and the baseline.

    Args:
        service: The VirtualService.
    """
    annotations = service.metadata.annotations
    namespace, _, name = annotations.get(ROLLOUT_ANNOTATION, "").partition("/")
    baseline = annotations.get(CAPACITY_ANNOTATION, "").partition("=")[0]
    if not name or not baseline:
        return
    for host in dict.fromkeys(_divided_hosts(service)):
        yield rollout_of_values(
            {
                "apiVersion": f"{ROLLOUTS.group}/{ROLLOUTS.version}",
                "kind": ROLLOUTS.kind,
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "host": host,
                    "baseline": baseline,
                    # A rollout has one; nothing is sent to it.
                    "candidate": f"not-{baseline}",
                    "strategy": {"manual": {"weights": [1]}},
                    "traffic": {"write": "patch", "virtualService": service.metadata.name},
                },
            }
        )


def _divided_hosts(service: Manifest) -> Iterator[str]:
    for route in service.spec.get("http") or ():
        for each in route.get("route") or ():
            destination = each.get("destination") or {}
            if destination.get("subset"):
                yield full_host_name(str(destination.get("host")), service.metadata.namespace)


async def _is_done(
    client: KubeClient,
    service: Manifest,
    rollout: Rollout,
    traffic_of: Callable[[Rollout], TrafficRouter],
) -> bool:
    """Hands the traffic of one rollout back if it does not exist; returns whether all is well."""
    namespace, name = rollout.metadata.namespace, rollout.metadata.name
    try:
        if await _exists(client, name, namespace):
            return True
    except KubeError as error:
        _log.warning("owner of traffic not found out", rollout=rollout.key, error=str(error))
        return False
    _log.warning(
        "traffic of a rollout that does not exist is handed back",
        rollout=rollout.key,
        virtual_service=service.key,
        to=rollout.spec.baseline,
    )
    split = TrafficSplit(weights={rollout.spec.baseline: 100.0})
    try:
        await traffic_of(rollout).apply(rollout.spec.host, split, "", urgent=True)
    except TrafficError as error:
        _log.warning("traffic not handed back", rollout=rollout.key, error=str(error))
        return error.permanent
    return True


async def _exists(client: KubeClient, name: str, namespace: str) -> bool:
    """Returns whether there is a Rollout.

    Raises:
        KubeError: The API server does not say.
    """
    try:
        await client.get(ROLLOUTS, name, namespace)
    except NotFoundError:
        return False
    return True
