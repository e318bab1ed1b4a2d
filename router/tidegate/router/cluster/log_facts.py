"""Keeps what the access log needs to know of hosts up to date with the cluster's objects."""

import asyncio
from collections.abc import Iterator
from typing import Final

from tidegate.istio import IstioObject
from tidegate.router.istio_log.host_facts import facts_of
from tidegate.router.istio_log.istio_log import IstioLog
from tidegate.traffic.cluster.caches import CachedObjects
from tidegate.traffic.cluster.host_objects import ManifestParser
from tidegate.traffic.router import TrafficError

__all__ = ["keep_facts"]

# Many objects may change at once, and the facts of all of them are made anew.
_PAUSE_S: Final = 0.2
_HOST: Final = "{0.name}.{0.namespace}.svc.cluster.local"


async def keep_facts(log: IstioLog, objects: CachedObjects) -> None:
    """Keeps the facts of hosts up to date, until the task is cancelled.

    Args:
        log: Needs them.
        objects: The objects of the cluster.
    """
    parser = ManifestParser()
    changed = asyncio.Event()

    # It lasts as long as the caches, so nothing ends the calls.
    for cache in (objects.virtual_services, objects.destination_rules, objects.services):
        cache.on_change(lambda *_: changed.set())
    changed.set()
    while True:
        await changed.wait()
        changed.clear()
        selectors = {
            _HOST.format(each.metadata): each.spec.selector for each in objects.services.all()
        }
        log.attribution.facts = facts_of(_parsed(objects, parser), selectors)
        await asyncio.sleep(_PAUSE_S)


def _parsed(objects: CachedObjects, parser: ManifestParser) -> Iterator[IstioObject]:
    """The objects that can be read; a rollout whose objects cannot be read says so itself."""
    for service in objects.virtual_services.all():
        try:
            yield parser.virtual_service(service)
        except TrafficError:
            continue
    for rule in objects.destination_rules.all():
        try:
            yield from parser.destination_rules((rule,))
        except TrafficError:
            continue
