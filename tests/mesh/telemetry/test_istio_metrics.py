"""Istio's standard metrics, computed from request records."""

import asyncio
import dataclasses
import re

import grpc
import pytest
from prometheus_client import CollectorRegistry
from request_records import GATEWAY, HOST, RECORD, VISION, at

from tidegate.mesh.telemetry import RequestLog
from tidegate.mesh.telemetry.istio_metrics import MAX_LABEL_SETS, IstioMetrics, IstioWorkload


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return IstioMetrics(at({"127.0.0.1:8501": VISION}), lambda _: GATEWAY, registry)


def samples(registry, name):
    return [each for family in registry.collect() for each in family.samples if each.name == name]


def only(registry, name):
    (sample,) = samples(registry, name)
    return sample


async def test_request_counts_with_all_of_istios_labels(registry, metrics):
    metrics.observe(RECORD)
    metrics.observe(RECORD)
    sample = only(registry, "istio_requests_total")
    assert sample.value == 2
    assert sample.labels == {
        "reporter": "source",
        "source_workload": "gateway",
        "source_workload_namespace": "models",
        "source_principal": "unknown",
        "source_app": "gateway",
        "source_version": "unknown",
        "source_cluster": "Kubernetes",
        "source_canonical_service": "gateway",
        "source_canonical_revision": "latest",
        "destination_workload": "vision-v2",
        "destination_workload_namespace": "models",
        "destination_principal": "unknown",
        "destination_app": "vision",
        "destination_version": "v2",
        "destination_cluster": "Kubernetes",
        "destination_canonical_service": "vision",
        "destination_canonical_revision": "2-int8",
        "destination_service": HOST,
        "destination_service_name": "vision",
        "destination_service_namespace": "models",
        "request_protocol": "grpc",
        "response_code": "200",
        "grpc_response_status": "0",
        "response_flags": "-",
        "connection_security_policy": "unknown",
    }


async def test_times_sizes_and_messages_are_those_of_the_request(registry, metrics):
    metrics.observe(RECORD)
    assert only(registry, "istio_request_duration_milliseconds_sum").value == pytest.approx(30)
    assert only(registry, "istio_request_bytes_sum").value == 150_000
    assert only(registry, "istio_response_bytes_sum").value == 300
    assert only(registry, "istio_request_messages_total").value == 1
    assert only(registry, "istio_response_messages_total").value == 4
    first = only(registry, "tidegate_mesh_time_to_first_byte_seconds_sum")
    assert first.value == pytest.approx(0.020)
    assert first.labels == {
        "host": HOST,
        "subset": "v2",
        "method": "tidegate.vision.v1.VisionService/Classify",
    }


async def test_a_request_without_an_endpoint_counts_for_the_service_without_a_workload(
    registry, metrics
):
    metrics.observe(
        dataclasses.replace(
            RECORD,
            upstream_address="",
            time_to_first_byte_s=None,
            response_flags=("UH", "URX"),
            grpc_status=grpc.StatusCode.UNAVAILABLE,
        )
    )
    labels = only(registry, "istio_requests_total").labels
    assert labels["response_flags"] == "UH,URX"
    assert labels["grpc_response_status"] == "14"
    assert labels["destination_service_name"] == "vision"
    assert labels["destination_workload"] == labels["destination_version"] == "unknown"
    assert samples(registry, "tidegate_mesh_time_to_first_byte_seconds_sum") == []


async def test_plain_http_has_no_grpc_status(registry, metrics):
    metrics.observe(dataclasses.replace(RECORD, is_grpc=False, grpc_status=None))
    labels = only(registry, "istio_requests_total").labels
    assert (labels["request_protocol"], labels["grpc_response_status"]) == ("http", "")
    assert only(registry, "istio_response_messages_total").value == 0


async def test_labels_never_come_from_clients(registry, metrics):
    for number in range(50):
        metrics.observe(
            dataclasses.replace(
                RECORD,
                authority=f"evil-{number}",
                path=f"/evil.{number}/A",
                service=f"evil.{number}",
                method="A",
                headers={"x-user-id": str(number)},
                grpc_status=grpc.StatusCode.UNIMPLEMENTED,
            )
        )
        metrics.observe(
            dataclasses.replace(RECORD, host="", subset="", cluster="", authority=f"evil-{number}")
        )
    assert len(samples(registry, "istio_requests_total")) == 2
    assert {
        (each.labels["host"], each.labels["method"])
        for each in samples(registry, "tidegate_mesh_time_to_first_byte_seconds_sum")
    } == {(HOST, "other"), ("unknown", "tidegate.vision.v1.VisionService/Classify")}


async def test_invented_clusters_are_bounded_and_still_counted(registry, metrics):
    total = MAX_LABEL_SETS + 100
    for number in range(total):
        metrics.observe(dataclasses.replace(RECORD, host=f"evil-{number}", method=f"M{number}"))
    counted = samples(registry, "istio_requests_total")
    assert len(counted) == MAX_LABEL_SETS + 1
    assert sum(each.value for each in counted) == total
    assert next(each.value for each in counted if each.labels["reporter"] == "unknown") == 100
    first = samples(registry, "tidegate_mesh_time_to_first_byte_seconds_count")
    assert len(first) == MAX_LABEL_SETS + 1
    assert sum(each.value for each in first) == total


@pytest.mark.parametrize(
    ("labels", "service", "revision"),
    [
        ({}, "name", "latest"),
        ({"app": "a", "version": "1"}, "a", "1"),
        ({"app": "a", "app.kubernetes.io/name": "b"}, "b", "latest"),
        (
            {
                "app": "a",
                "app.kubernetes.io/name": "b",
                "service.istio.io/canonical-name": "c",
                "version": "1",
                "app.kubernetes.io/version": "2",
                "service.istio.io/canonical-revision": "3",
            },
            "c",
            "3",
        ),
    ],
)
def test_canonical_names_follow_istios_order(labels, service, revision):
    workload = IstioWorkload.from_labels("name", "models", labels)
    assert (workload.canonical_service, workload.canonical_revision) == (service, revision)


async def test_log_is_followed_until_cancelled(registry, metrics):
    log = RequestLog()
    following = asyncio.create_task(metrics.follow(log))
    await asyncio.sleep(0)
    await log.publish([RECORD] * 3)
    async with asyncio.timeout(10):
        while not samples(registry, "istio_requests_total"):
            await asyncio.sleep(0)
    assert only(registry, "istio_requests_total").value == 3
    following.cancel()
    await asyncio.wait({following})
    assert following.cancelled()
    # No subscriber is left to wait for.
    await log.publish([RECORD])


@pytest.mark.asyncio(loop_scope="module")
async def test_buckets_are_those_of_the_real_proxy(mesh):
    """Istio's proxies use Envoy's buckets, which Envoy shows once it has measured something."""
    await mesh.call("Unary", "v1")
    registry = CollectorRegistry()
    metrics = IstioMetrics(at({}), lambda _: GATEWAY, registry)
    metrics.observe(RECORD)
    ours = samples(registry, "istio_request_duration_milliseconds_bucket")
    text = await mesh.admin_text("/stats/prometheus?filter=http.ingress.downstream_rq_time")
    theirs = re.findall(
        r'^envoy_http_downstream_rq_time_bucket\{.*le="([^"]+)"\}', text, re.MULTILINE
    )
    assert [float(each.labels["le"]) for each in ours] == [float(each) for each in theirs]
