"""A server's metrics, as a real Prometheus stores them."""

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_server import prometheus

from tidegate.runtime.monitoring import monitoring

SERVICE = "tidegate.test.EchoService"
# As service discovery maps the labels of pods.
POD = {"pod": "echo-0", "app": "echo", "version": "canary"}
HANDLED = f'grpc_server_handled_total{{grpc_service="{SERVICE}",grpc_method="Echo"'


@pytest.fixture
async def server(start_process, echo_client, tmp_path):
    """A new server process, a client of it, and a Prometheus that scrapes it."""
    _, ports = await start_process()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel,
        prometheus(tmp_path, {"echo": ports["metrics"]}, labels=POD) as scraper,
    ):
        yield echo_client(channel), scraper


async def test_failure_ratio_of_a_new_server_includes_its_first_failures(server):
    client, scraper = server
    await scraper.until("count_over_time(up[1m]) >= 2")
    for _ in range(30):
        await client.call("echo", "ok")
        await client.failure("echo", "unavailable")
    await scraper.until(f'{HANDLED},grpc_code="Unavailable"}} == 30')
    await scraper.until(f'{HANDLED},grpc_code="OK"}} == 30')
    failed = f'sum(rate({HANDLED},grpc_code!="OK"}}[5m]))'
    assert await scraper.value(f"{failed} / sum(rate({HANDLED}}}[5m]))") == pytest.approx(0.5)


@pytest.mark.long
async def test_names_with_colons_reach_prometheus_unchanged(tmp_path):
    registry = CollectorRegistry()
    usage = Gauge("vllm:kv_cache_usage_perc", "Used.", ("model_name",), registry=registry)
    usage.labels("smollm2").set(0.25)
    Counter("vllm:prompt_tokens", "Tokens.", registry=registry).inc(7)
    with monitoring("127.0.0.1", 0, lambda: True, registry) as port:
        async with prometheus(tmp_path, {"llm": port}) as scraper:
            await scraper.until("up == 1")
            assert await scraper.value("vllm:kv_cache_usage_perc") == 0.25
            assert await scraper.value("vllm:prompt_tokens_total") == 7
            assert await scraper.query('{__name__=~"vllm_.+"}') == []
            (target,) = await scraper.targets()
            assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.long
async def test_server_without_tls_has_no_certificate_series(server):
    _, scraper = server
    await scraper.until("up == 1")
    expiring = "tidegate_tls_certificate_expiry_timestamp_seconds - time() < 14 * 86400"
    assert await scraper.query(expiring) == []
    assert await scraper.query('{__name__=~"tidegate_tls_.+"}') == []


async def test_uncalled_server_has_every_method_and_code_at_zero(server):
    _, scraper = server
    await scraper.until("up == 1")
    for metric in ("grpc_server_started_total", "grpc_server_handled_total"):
        found = await scraper.query(f'{metric}{{grpc_service="{SERVICE}"}}')
        assert {labels["grpc_method"] for labels, _ in found} == {
            *("Echo", "Repeat", "Collect", "Chat")
        }
        assert {value for _, value in found} == {"0"}
    found = await scraper.query(f"{HANDLED}}}")
    assert {labels["grpc_code"] for labels, _ in found} == {
        *("OK", "Canceled", "InvalidArgument", "NotFound", "FailedPrecondition"),
        *("ResourceExhausted", "DeadlineExceeded", "Unavailable", "Unimplemented", "Internal"),
    }
    assert await scraper.value('sum(grpc_server_handled_total{grpc_service="other"})') == 0


async def test_failures_are_counted_by_model_version_from_the_first(server):
    client, scraper = server
    await scraper.until("count_over_time(up[1m]) >= 2")
    for _ in range(10):
        await client.call("echo", "model v1 ok")
        await client.call("repeat", "model v1 ok")
        await client.failure("echo", "model v2 internal")
        await client.call("repeat", "model v2 ok")
        await client.failure("echo", "not-found")
    requests = f'tidegate_requests_total{{grpc_service="{SERVICE}"'
    await scraper.until(f'sum by (model) ({requests},model="echo"}}) == 40')
    by = "by (model, model_version)"
    ratio = await scraper.query(
        f'sum {by} (rate({requests},grpc_code!="OK"}}[5m])) / sum {by} (rate({requests}}}[5m]))'
    )
    assert {labels.get("model_version", ""): float(value) for labels, value in ratio} == {
        "v1": 0.0,
        "v2": pytest.approx(0.5),
        "": 1.0,
    }
    codes = await scraper.query(f'{requests},model_version="v2",grpc_method="Echo"}} > 0')
    assert [(labels["grpc_code"], value) for labels, value in codes] == [("Internal", "10")]


async def test_build_and_model_info_hide_no_label_of_a_pod(server):
    _, scraper = server
    await scraper.until("tidegate_model_info == 1")
    models = await scraper.query("tidegate_model_info")
    assert [
        {key: labels[key] for key in ("model", "model_version", "precision", "engine")}
        for labels, _ in models
    ] == [
        {"model": "echo", "model_version": each, "precision": "fp32", "engine": "echo 1"}
        for each in ("v1", "v2")
    ]
    assert {labels["version"] for labels, _ in models} == {"canary"}
    assert len(await scraper.query("tidegate_build_info")) == 1
    # These two have a label of pods by convention, as every `*_build_info` does.
    renamed = await scraper.query('{exported_version=~".+"} or {exported_model=~".+"}')
    assert {labels["__name__"] for labels, _ in renamed} == {"tidegate_build_info", "python_info"}
