"""A real Prometheus reads the metrics of a server with vLLM."""

import pytest
from grpc.aio import AioRpcError
from prometheus_server import prometheus

pytestmark = pytest.mark.llm

MODEL = 'model="smollm2",model_version=~".+"'
OURS = {
    f"tidegate_llm_{name}"
    for name in (
        *("time_to_first_token_seconds_count", "inter_token_seconds_count", "queue_seconds_count"),
        *("tokens_total", "in_flight_requests", "refused_total"),
        *("finished_total", "cancelled_total"),
    )
}


async def test_metrics_of_vllm_and_tidegate_reach_prometheus(server, client, tmp_path):
    async with prometheus(tmp_path, {"llm": server.metrics_port}) as scraper:
        await scraper.until("up == 1")
        # vLLM's own metrics, under the names in its dashboards.
        assert await scraper.value("sum(vllm:kv_cache_usage_perc)") == 0
        assert await scraper.query('{__name__=~"vllm_.+"}') == []
        before = await scraper.value("sum(vllm:generation_tokens_total)")
        await client.answer("Hello", max_tokens=3, temperature=0.0)
        await scraper.until(f"sum(vllm:generation_tokens_total) > {before}")
        (target,) = await scraper.targets()
        assert (target["health"], target["lastError"]) == ("up", "")

        found = await scraper.query(f'{{__name__=~"tidegate_llm_.+",{MODEL}}}')
        assert {labels["__name__"] for labels, _ in found} >= OURS
        assert await scraper.query('{__name__=~"tidegate_llm_.+",model=""}') == []
        (info,) = await scraper.query("tidegate_model_info")
        assert (info[0]["model"], info[0]["engine"][:5]) == ("smollm2", "vllm ")

        rejected = f'tidegate_requests_total{{{MODEL},grpc_code="InvalidArgument"}}'
        count = await scraper.value(f"sum({rejected})")
        with pytest.raises(AioRpcError):
            await client.answer("Hello", temperature=-1.0)
        await scraper.until(f"sum({rejected}) == {count} + 1")
        for label, metric, values in (
            ("reason", "finished_total", {"stop", "length", "abort", "repetition"}),
            ("kind", "tokens_total", {"prompt", "completion"}),
            ("cause", "cancelled_total", {"client", "deadline", "stalled", "engine", "error"}),
        ):
            found = await scraper.query(f"tidegate_llm_{metric}")
            assert {labels[label] for labels, _ in found} >= values
