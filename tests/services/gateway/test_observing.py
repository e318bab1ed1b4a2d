"""Request ids, metrics and spans, over real connections and calls."""

import asyncio
import re

import httpx
import pytest
from conventions import current_attributes
from gateway_routes import add_test_routes
from gateway_server import gateway
from held_llm import MODEL, held_llm
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY
from raw_http import ask

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
async def llm():
    async with held_llm() as double:
        double.tokens = 3
        double.go_on.set()
        yield double


@pytest.fixture
async def client(llm):
    async with gateway(llm=[llm.address]) as served:
        add_test_routes(served.gateway.app)
        async with httpx.AsyncClient(base_url=served.base_url) as client:
            client.port = served.port
            yield client


def sample(name, **labels):
    return REGISTRY.get_sample_value(f"tidegate_gateway_{name}", labels) or 0


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), (None, False)],
)
async def test_a_request_id_is_kept_if_it_is_one(client, llm, sent, kept):
    headers = {} if sent is None else {"x-request-id": sent}
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    told = answer.headers["x-request-id"]
    assert answer.status_code == 200
    assert (told == sent) is kept
    assert kept or re.fullmatch("[0-9a-f]{32}", told)
    assert llm.metadata["x-request-id"] == told


async def test_headers_that_routes_match_go_on(client, llm):
    headers = {"x-user-id": "ada", "x-user-tier": "gold", "x-other": "no"}
    await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert (llm.metadata["x-user-id"], llm.metadata["x-user-tier"]) == ("ada", "gold")
    assert "x-other" not in llm.metadata
    assert "authorization" not in llm.metadata


@pytest.mark.parametrize("value", ["ä", "x" * 5000])
async def test_a_header_that_cannot_go_on_is_refused(client, value):
    headers = {"x-user-id": value.encode()}
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 400
    assert "x-user-id" in answer.json()["error"]["message"]


async def test_metrics_have_bounded_labels(client):
    route = {"route": "/v1/chat/completions", "method": "POST", "status": "2xx"}
    before = sample("requests_total", **route, model=MODEL)
    tokens = sample("tokens_total", model=MODEL, kind="completion")
    first = sample("time_to_first_token_seconds_count", model=MODEL)
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert sample("requests_total", **route, model=MODEL) == before + 2
    assert sample("request_seconds_count", **route) >= 2
    assert sample("tokens_total", model=MODEL, kind="completion") == tokens + 6
    assert sample("tokens_total", model=MODEL, kind="prompt") >= 14
    assert sample("time_to_first_token_seconds_count", model=MODEL) == first + 1
    assert sample("inter_token_seconds_count", model=MODEL) >= 1
    assert sample("in_flight_requests") == 0

    for path in ("/made-up/1", "/made-up/2"):
        await client.get(path)
    await client.post("/v1/chat/completions", json={**CHAT, "model": "made-up"})
    await ask(client.port, "MKCOL /v1/models HTTP/1.1\nHost: a\n\n")
    page = (await client.get("/metrics")).text
    assert "made-up" not in page
    assert "MKCOL" not in page
    assert sample("requests_total", route="", method="GET", status="4xx", model="") >= 2
    assert sample("requests_total", route="/v1/models", method="other", status="4xx", model="") >= 1


async def test_a_trace_goes_on_to_the_server_without_a_collector(client, llm):
    headers = {"traceparent": PARENT, "tracestate": "a=b", "baggage": "k=v"}
    await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert {name: llm.metadata[name] for name in headers} == headers
    await client.post("/v1/chat/completions", json=CHAT, headers={"traceparent": "x" * 200})
    assert "traceparent" not in llm.metadata


async def test_a_span_with_the_tokens_of_a_stream_as_two_events(client, llm, recorded):
    headers = {"traceparent": PARENT, "tracestate": "a=b", "baggage": "k=v"}
    await client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers)
    spans = recorded()
    assert list(spans) == ["POST /v1/chat/completions"]
    (span,) = spans.values()
    assert span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert llm.metadata["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert (llm.metadata["tracestate"], llm.metadata["baggage"]) == ("a=b", "k=v")
    assert span.attributes.items() >= {
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
        ("http.response.status_code", 200),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", MODEL),
        ("gen_ai.usage.input_tokens", 7),
        ("gen_ai.usage.output_tokens", 3),
    }
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    plain = {name for name in span.attributes if not name.startswith("gen_ai.")}
    assert plain <= current_attributes()
    first, last = span.events
    assert (first.name, last.name) == ("first token", "last token")
    assert span.start_time <= first.timestamp <= last.timestamp <= span.end_time
    assert span.status.status_code is StatusCode.UNSET


async def test_spans_of_failures(client, recorded):
    await client.get("/test/fail")
    await client.get("/nothing/of/this")
    spans = recorded()
    assert spans["GET /test/fail"].status.status_code is StatusCode.ERROR
    assert spans["GET /test/fail"].attributes["error.type"] == "500"
    assert spans["GET"].status.status_code is StatusCode.UNSET
    assert "http.route" not in spans["GET"].attributes


async def test_probes_and_metrics_answer_on_both_ports(llm):
    async with gateway(llm=[llm.address]) as served:
        for port in (served.port, served.gateway.metrics_port):
            for path, says in (
                ("healthz", "OK"),
                ("readyz", "OK"),
                ("metrics", "tidegate_gateway"),
            ):
                async with httpx.AsyncClient() as client:
                    answer = await client.get(f"http://127.0.0.1:{port}/{path}")
                assert answer.status_code == 200
                assert says in answer.text


async def test_it_is_not_ready_before_each_server_has_told_its_models(llm):
    async with gateway(llm=[llm.address, "127.0.0.1:1"], wait_until_ready=False) as served:
        async with asyncio.timeout(5):
            while not served.gateway.parts.backends.language_models:
                await asyncio.sleep(0.01)
        for port in (served.port, served.gateway.metrics_port):
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{port}/readyz")
            assert answer.status_code == 503


async def test_cors_is_off_unless_origins_are_named(client):
    preflight = {"origin": "http://page", "access-control-request-method": "POST"}
    answer = await client.options("/v1/chat/completions", headers=preflight)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


async def test_a_preflight_needs_no_key(tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys: [{{name: a, sha256: {'a' * 64}}}]")
    async with gateway(cors_origins=["http://page"], api_keys_file=keys) as served:
        base_url = served.base_url
        async with httpx.AsyncClient(base_url=base_url) as client:
            preflight = {
                "origin": "http://page",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization",
            }
            answer = await client.options("/v1/chat/completions", headers=preflight)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "http://page"
            assert answer.headers["x-request-id"]
            refused = await client.get("/v1/models", headers={"origin": "http://page"})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "http://page"
            other = await client.options(
                "/v1/models", headers={**preflight, "origin": "http://other"}
            )
            assert "access-control-allow-origin" not in other.headers
