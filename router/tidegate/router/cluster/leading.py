"""What the leading replica does: it runs the rollouts of the cluster."""

import asyncio

from tidegate.errors import TidegateError
from tidegate.kube.cache import ALL_NAMESPACES
from tidegate.kube.client import KubeClient
from tidegate.kube.events import EventRecorder
from tidegate.rollout.spec.model import EvidenceFrom, Rollout
from tidegate.router.cluster.caches import Caches
from tidegate.router.cluster.orphans import hand_back_orphans, remove_unused_filters
from tidegate.router.cluster.reporting import Reporter
from tidegate.router.cluster.rollout_objects import RolloutObjects
from tidegate.router.cluster.settings import ClusterSettings
from tidegate.router.crd_store import CrdStore
from tidegate.router.istio_log.istio_log import IstioLog
from tidegate.router.metrics import publishing
from tidegate.router.reconciler import reconciling
from tidegate.router.sources.prometheus import PrometheusSource
from tidegate.router.sources.source import TrafficSource
from tidegate.router.surroundings import LoopSettings
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.surroundings import ClusterTrafficSettings

__all__ = ["TakenError", "run_rollouts"]


class TakenError(TidegateError):
    """Another controller writes the statuses of rollouts, so this one must load them anew."""


async def run_rollouts(
    client: KubeClient,
    caches: Caches,
    log: IstioLog,
    settings: ClusterSettings,
) -> None:
    """Runs the rollouts until the task is cancelled.

    Args:
        client: The API server. It refuses writes once this replica does not lead any more.
        caches: The objects that the router follows.
        log: The access log of the mesh, which is being read.
        settings: The router's settings.

    Raises:
        TakenError: Another controller writes statuses too.
        StoreError: The rollouts cannot be loaded.
        BehindError: The caches do not show what the API server has.
        KubeError: The API server does not answer.
    """
    await caches.show_all(client, settings.namespaces)
    namespaces = tuple(settings.namespaces) or (ALL_NAMESPACES,)
    store = CrdStore(client, caches.rollouts, settings.identity, namespaces)
    traffic = ClusterTraffic(
        *(client, caches.traffic, log.observer),
        ClusterTrafficSettings(
            settle_s=settings.settle_s,
            urgent_s=settings.urgent_s,
            subset_settle_s=settings.subset_settle_s,
            probe_percent=settings.probe_percent,
            capacity_factor=settings.capacity_factor,
        ),
    )
    async with PrometheusSource().running() as prometheus:

        def source_of(rollout: Rollout) -> TrafficSource:
            counted = rollout.spec.evidence.source is EvidenceFrom.PROMETHEUS
            return prometheus if counted else log.source

        async with (
            reconciling(
                *(traffic.of, source_of, store),
                settings=LoopSettings(
                    evaluate_interval_s=settings.evaluate_interval_s,
                    evidence_interval_s=settings.evidence_interval_s,
                    read_timeout_s=settings.read_timeout_s,
                    apply_timeout_s=settings.apply_timeout_s,
                    prometheus_url=settings.prometheus_url,
                ),
            ) as reconciler,
            EventRecorder.opened(
                client, controller="tidegate.dev/router", instance=settings.identity
            ) as recorder,
        ):
            objects = RolloutObjects(client, caches.rollouts, store, reconciler, traffic)
            with publishing(reconciler.registry):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(objects.follow())
                    reporter = Reporter(reconciler.registry, caches.rollouts, recorder, store)
                    tasks.create_task(reporter.run())
                    tasks.create_task(_end_if_taken(store))
                    services = caches.traffic.virtual_services.all()
                    tasks.create_task(hand_back_orphans(client, services, traffic.of))
                    if (filters := caches.traffic.envoy_filters) is not None:
                        tasks.create_task(remove_unused_filters(client, filters.all(), services))


async def _end_if_taken(store: CrdStore) -> None:
    await store.taken()
    raise TakenError(
        "another controller writes the statuses of rollouts; end one of the two, or give all"
        " routers the same --lease and --own-namespace, so that one of them leads"
    )
