"""Long-lived connections: pings during a silent prefill, and the maximum connection age."""

import asyncio

import grpc

PINGING = [
    ("grpc.keepalive_time_ms", 20),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


async def test_client_that_pings_during_a_long_prefill_keeps_its_connection(serving, echo_client):
    async with (
        serving(min_ping_interval_s=300) as (_, strict_server, _),
        serving(min_ping_interval_s=0.001) as (lenient, lenient_server, _),
        grpc.aio.insecure_channel(
            f"127.0.0.1:{strict_server.grpc_port}", options=PINGING
        ) as to_strict,
        grpc.aio.insecure_channel(
            f"127.0.0.1:{lenient_server.grpc_port}", options=PINGING
        ) as to_lenient,
    ):
        silent = asyncio.create_task(echo_client(to_lenient).call("echo", "wait"))
        await lenient.waiting.acquire()
        # The strict server closes the connection once there were too many pings.
        error = await echo_client(to_strict).failure("echo", "wait")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "ping" in error.details().lower()
        assert not silent.done()
        lenient.go_on.set()
        assert await silent == ["wait"]


async def test_old_connections_are_replaced_without_failing_a_call(serving):
    async with serving(max_connection_age_s=0.1, max_connection_age_grace_s=60) as (
        application,
        _,
        client,
    ):
        silent = asyncio.create_task(client.call("repeat", "wait"))
        await application.waiting.acquire()
        while len(application.peers) < 4:
            assert await client.call("echo", "peer") == ["peer"]
        application.go_on.set()
        assert await silent == ["wait"] * 3
