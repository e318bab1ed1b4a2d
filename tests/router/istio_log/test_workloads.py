"""Istio's metrics on a cluster: who called whom, from the proxies' nodes and the Pods."""

import asyncio
import contextlib
import dataclasses

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from request_records import RECORD

from tidegate.kube.cache import ALL_NAMESPACES, ObjectCache
from tidegate.kube.resources import ObjectMeta, OwnerReference, Pod, PodStatus
from tidegate.mesh.telemetry import IstioMetrics, IstioWorkload
from tidegate.router.istio_log import workloads as workloads_module
from tidegate.router.istio_log.istio_log import IstioLog, IstioLogSettings
from tidegate.router.istio_log.senders import Sender
from tidegate.router.istio_log.workloads import ClusterWorkloads

GATEWAY = Sender(
    id="router~10.0.0.9~gateway-7c-x.istio-ingress~istio-ingress.svc.cluster.local",
    kind="router",
    address="10.0.0.9",
    pod="istio-ingressgateway-7c-x",
    namespace="istio-ingress",
    labels={"app": "istio-ingressgateway"},
    workload="istio-ingressgateway",
)
CLIENT = Sender(
    id="sidecar~10.0.0.7~shop-5d-abcde.shop~shop.svc.cluster.local",
    kind="sidecar",
    address="10.0.0.7",
    pod="shop-5d-abcde",
    namespace="shop",
    labels={"app": "shop", "version": "v3", "pod-template-hash": "5d"},
)


def pod(version, address="10.0.0.5", version_number=1, **metadata):
    name = f"vision-{version}-6f9-abcde"
    return Pod(
        metadata=ObjectMeta(
            **{
                "name": name,
                "namespace": "models",
                "uid": name,
                "resource_version": str(version_number),
                "labels": {"app": "vision", "version": version, "pod-template-hash": "6f9"},
                "owner_references": (
                    OwnerReference(
                        api_version="apps/v1",
                        kind="ReplicaSet",
                        name=f"vision-{version}-6f9",
                        uid="1",
                    ),
                ),
            }
            | metadata
        ),
        status=PodStatus(phase="Running", pod_ip=address),
    )


def total(registry):
    """How many requests are counted, whatever their labels are."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.name == "istio_requests_total"
    )


def counted(known, record):
    """The labels with which a request is counted."""
    registry = CollectorRegistry()
    IstioMetrics(known.workload_at, known.source_of, registry).observe(record)
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if sample.name == "istio_requests_total":
                return sample.labels
    raise AssertionError("not counted")


def test_a_request_is_counted_from_the_proxys_workload_to_the_pod_that_it_called():
    known = ClusterWorkloads()
    known.note_sender(GATEWAY)
    pods = ObjectCache()
    pods.put(ALL_NAMESPACES, pod("v2"))
    known.follow(pods)
    labels = counted(
        known, dataclasses.replace(RECORD, proxy=GATEWAY.id, upstream_address="10.0.0.5:8500")
    )
    assert labels["reporter"] == "source"
    assert labels["source_workload"] == "istio-ingressgateway"
    assert labels["source_workload_namespace"] == "istio-ingress"
    assert labels["destination_workload"] == "vision-v2"
    assert labels["destination_workload_namespace"] == "models"
    assert labels["destination_version"] == "v2"
    assert labels["destination_service_name"] == "vision"


def test_the_last_records_of_a_pod_that_is_gone_count_for_its_version():
    known = ClusterWorkloads()
    pods = ObjectCache()
    known.follow(pods)
    pods.put(ALL_NAMESPACES, pod("v1", version_number=2))
    pods.remove(ALL_NAMESPACES, pod("v1", version_number=3))
    record = dataclasses.replace(RECORD, upstream_address="10.0.0.5:8500")
    assert counted(known, record)["destination_version"] == "v1"
    # Its address gets another Pod.
    pods.put(ALL_NAMESPACES, pod("v2", version_number=4))
    assert counted(known, record)["destination_version"] == "v2"


def test_a_caller_with_a_sidecar_has_a_workload_and_one_without_a_proxy_has_none():
    known = ClusterWorkloads()
    known.note_sender(CLIENT)
    labels = counted(known, dataclasses.replace(RECORD, proxy=CLIENT.id))
    # Its node does not name the Deployment, so it is the name of the Pod without its hash.
    assert (labels["source_workload"], labels["source_version"]) == ("shop", "v3")
    labels = counted(known, dataclasses.replace(RECORD, proxy=CLIENT.id, server_side=True))
    assert (labels["reporter"], labels["source_workload"]) == ("source", "unknown")


def test_a_sidecar_names_a_destination_that_is_in_no_watched_namespace():
    known = ClusterWorkloads()
    known.note_sender(CLIENT)
    assert known.workload_at("10.0.0.7:9000", 0.0) == IstioWorkload.from_labels(
        "shop", "shop", CLIENT.labels
    )
    assert known.workload_at("10.0.0.8:9000", 0.0) is None


def test_invented_proxies_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(workloads_module, "MAX_REMEMBERED", 3)
    known = ClusterWorkloads()
    for number in range(10):
        known.note_sender(
            Sender(id=f"sidecar~{number}", kind="sidecar", address=str(number), pod="a")
        )
    assert len(known._by_proxy) == len(known._by_address) == 3
    assert known.workload_at("9:1", 0.0) is not None


@pytest.mark.parametrize("asked", [True, False])
async def test_a_replica_counts_what_it_receives_if_the_settings_ask_for_it(asked):
    registry = CollectorRegistry()
    log = IstioLog(IstioLogSettings(istio_metrics=asked), registry=registry)
    log.workloads.note_sender(GATEWAY)
    counting = asyncio.create_task(log.count_requests())
    mirrored = dataclasses.replace(RECORD, mirrored=True)
    await asyncio.sleep(0)
    await log._requests.publish([dataclasses.replace(RECORD, proxy=GATEWAY.id), mirrored])

    if asked:
        async with asyncio.timeout(30):
            while total(registry) != 1.0:
                await asyncio.sleep(0.01)
        counting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await counting
    else:
        await counting
        assert "istio_" not in generate_latest(registry).decode()
