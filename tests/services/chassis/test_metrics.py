"""Metrics and probes over HTTP, as Prometheus and a kubelet read them."""

import asyncio
import urllib.error
import urllib.request

import grpc
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from tidegate.chassis.calls import deadline_has_passed
from tidegate.chassis.served_models import ServedModel
from tidegate.runtime.monitoring import monitoring

SERVICE = "tidegate.test.EchoService"


async def get(port, path):
    """Sends an HTTP GET; gives status and text."""

    def ask():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def samples(server):
    """Gives the value of every sample."""
    status, text = await get(server.metrics_port, "/metrics")
    assert status == 200
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def named(name, kind, method, service=SERVICE, **labels):
    """Names a sample of a method."""
    labels |= {"grpc_type": kind, "grpc_service": service, "grpc_method": method}
    return (name, *sorted(labels.items()))


@pytest.mark.parametrize(
    ("kind", "grpc_type", "method", "received", "sent"),
    [
        ("echo", "unary", "Echo", 0, 0),
        ("repeat", "server_stream", "Repeat", 0, 3),
        ("collect", "client_stream", "Collect", 1, 0),
        ("chat", "bidi_stream", "Chat", 1, 1),
    ],
)
async def test_calls_are_counted_and_timed(serving, kind, grpc_type, method, received, sent):
    async with serving() as (_, server, client):
        before = await samples(server)
        await client.call(kind, "ok")
        await client.failure(kind, "exhausted")
        after = await samples(server)

    def gained(name, **labels):
        key = named(name, grpc_type, method, **labels)
        return after.get(key, 0) - before.get(key, 0)

    assert gained("grpc_server_started_total") == 2
    assert gained("grpc_server_handled_total", grpc_code="OK") == 1
    assert gained("grpc_server_handled_total", grpc_code="ResourceExhausted") == 1
    assert gained("grpc_server_handling_seconds_count") == 2
    assert gained("grpc_server_in_flight_rpcs") == 0
    # The server rejected the failed stream at its first message.
    assert gained("grpc_server_msg_received_total") == 2 * received
    assert gained("grpc_server_msg_sent_total") == sent + (kind == "repeat")


async def test_running_calls_are_in_flight(serving):
    name = named("grpc_server_in_flight_rpcs", "unary", "Echo")
    async with serving() as (application, server, client):
        call = client.echo("wait")
        await application.waiting.acquire()
        assert (await samples(server))[name] == 1
        call.cancel()
        await application.closed.acquire()
        while (await samples(server))[name]:
            pass


async def test_cancelled_calls_and_passed_deadlines_have_different_codes(serving):
    async with serving() as (application, server, client):
        before = await samples(server)
        call = client.echo("wait")
        await application.waiting.acquire()
        call.cancel()
        await application.closed.acquire()
        await client.failure("echo", "wait", timeout=0.05)
        await application.closed.acquire()
        codes = ("Canceled", "DeadlineExceeded")
        keys = [
            named("grpc_server_handled_total", "unary", "Echo", grpc_code=each) for each in codes
        ]
        async with asyncio.timeout(20):
            # The server counts calls a moment after they have ended.
            while True:
                after = await samples(server)
                counted = [after.get(key, 0) - before.get(key, 0) for key in keys]
                if sum(counted) == 2:
                    break
    assert counted == [1, 1]


async def test_messages_that_a_handler_writes_are_counted(serving):
    name = named("grpc_server_msg_sent_total", "server_stream", "Repeat")
    async with serving() as (_, server, client):
        before = await samples(server)
        assert await client.call("repeat", "write 4") == [
            *("write 4", "written", "written", "written", "written"),
            *("write 4", "write 4"),
        ]
        assert (await samples(server))[name] - before[name] == 7


@pytest.mark.parametrize("asks", ["code-of-cancellation", "code-of-cancellation early"])
@pytest.mark.parametrize("deadline_s", [0.05, 0.251, 1.0025])
async def test_handler_and_metric_agree_on_a_deadline_that_passed(serving, deadline_s, asks):
    # gRPC rounds up: a little more than one second travels as 1.01 s.
    name = named("grpc_server_handled_total", "unary", "Echo", grpc_code="DeadlineExceeded")
    async with serving() as (application, server, client):
        before = (await samples(server)).get(name, 0)
        await client.failure("echo", asks, timeout=deadline_s)
        await application.closed.acquire()
        assert application.code is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(20):
            while (await samples(server)).get(name, 0) == before:
                pass


async def test_handler_learns_whether_the_client_left_or_the_server_shuts_down(serving):
    async with serving(drain_deadline_s=0.05) as (application, server, client):
        call = client.echo("code-of-cancellation", timeout=60)
        await application.waiting.acquire()
        call.cancel()
        await application.closed.acquire()
        assert application.code is grpc.StatusCode.CANCELLED
        call = client.echo("code-of-cancellation", timeout=60)
        await application.waiting.acquire()
        await server.drain()
        await application.closed.acquire()
        assert application.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("given_s", "elapsed_s", "passed"),
    [
        (0.05, 0.046, True),
        (0.05, 0.04, False),
        (1.01, 1.0, True),
        (1.01, 0.99, False),
        (10.1, 10.001, True),
        (10.1, 9.9, False),
        (101, 100.001, True),
        (101, 99, False),
        (600, 600, True),
        (0, 0, True),
    ],
)
def test_deadline_has_passed_although_grpc_rounded_it_up(given_s, elapsed_s, passed):
    assert deadline_has_passed(given_s, elapsed_s) is passed


async def test_unknown_methods_share_one_label(serving):
    async with serving() as (_, server, client):
        for name in ("Nonsense", "MoreNonsense"):
            call = client.channel.unary_unary(f"/{SERVICE}/{name}")
            with pytest.raises(Exception, match="no method"):
                await call(b"")
        text = (await get(server.metrics_port, "/metrics"))[1]
    assert "Nonsense" not in text
    assert 'grpc_method="other",grpc_service="other"' in text


async def test_probes_follow_health(serving, echo):
    async with serving() as (_, server, _):
        assert (await get(server.metrics_port, "/healthz"))[0] == 200
        assert (await get(server.metrics_port, "/readyz"))[0] == 200
        server.health.set(echo.SERVICE, False)
        assert (await get(server.metrics_port, "/healthz"))[0] == 200
        assert (await get(server.metrics_port, "/readyz"))[0] == 503


async def test_other_paths_are_not_found(serving):
    async with serving() as (_, server, _):
        assert (await get(server.metrics_port, "/secrets"))[0] == 404


async def test_metrics_of_libraries_are_served_unchanged():
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_running", "Running.", registry=registry).set(3)
    with monitoring("127.0.0.1", 0, lambda: True, registry) as port:
        assert "vllm:num_requests_running 3.0" in (await get(port, "/metrics"))[1]


async def test_requests_on_a_stream_count_one_by_one_for_the_model_that_answers(serving):
    async with serving() as (application, server, client):
        before = await samples(server)
        await client.call("collect", "request v1 ok")
        await client.failure("chat", "request v2 exhausted")
        call = client.chat("request v1 ok", "request v2 ok", "request v1 wait")
        await application.waiting.acquire()
        call.cancel()
        await application.closed.acquire()

        async def counted():
            after = await samples(server)
            found = {}
            for key, value in after.items():
                labels = dict(key[1:])
                if key[0] == "tidegate_requests_total" and value > before.get(key, 0):
                    found[labels["model_version"], labels["grpc_method"], labels["grpc_code"]] = (
                        value - before.get(key, 0)
                    )
            return found

        async with asyncio.timeout(20):
            while ("v1", "Chat", "Canceled") not in (found := await counted()):
                pass
    assert found == {
        ("v1", "Collect", "OK"): 1,
        ("v2", "Chat", "ResourceExhausted"): 1,
        ("v1", "Chat", "OK"): 1,
        ("v2", "Chat", "OK"): 1,
        ("v1", "Chat", "Canceled"): 1,
    }


async def test_withdrawn_model_has_no_series(serving):
    async with serving() as (_, server, _):
        assert any(("model", "echo") in key for key in await samples(server))
    assert not any(
        sample.labels.get("model") == "echo"
        for family in REGISTRY.collect()
        for sample in family.samples
    )


def test_last_calls_of_a_withdrawn_model_create_no_series():
    path = "/test.Model/Ask"
    model = ServedModel("gone", "1", precision="float32", engine="none", methods=[path])
    model.publish()
    model.withdraw()
    for code in grpc.StatusCode:
        model.requests(path).count(code)
    assert not any(
        sample.labels.get("model") == "gone"
        for family in REGISTRY.collect()
        for sample in family.samples
    )
