"""Health as clients and probes see it."""

import asyncio
import json

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidegate.chassis import Health, running

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def stub_of(client):
    return health_pb2_grpc.HealthStub(client.channel)


def asked(service):
    return health_pb2.HealthCheckRequest(service=service)


async def test_check_answers_for_each_service_and_for_all(serving, echo):
    async with serving() as (_, server, client):
        stub = stub_of(client)
        assert (await stub.Check(asked(echo.SERVICE))).status == SERVING
        assert (await stub.Check(asked(""))).status == SERVING
        server.health.set(echo.SERVICE, False)
        assert (await stub.Check(asked(echo.SERVICE))).status == NOT_SERVING
        assert (await stub.Check(asked(""))).status == NOT_SERVING


async def test_names_for_probes_follow_the_life_of_the_server(echo, make_settings, tmp_path):
    application = echo.EchoApplication()
    application.may_load.clear()
    settings = make_settings(port_file=tmp_path / "ports.json")
    names = ("startup", "readiness", "liveness")

    async def statuses(stub):
        return [(await stub.Check(asked(name))).status for name in names]

    async def ask_then_load():
        await application.entered.wait()
        port = json.loads(settings.port_file.read_text())["grpc"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            loading = await statuses(stub)
            started = stub.Watch(asked("startup"))
            assert (await started.read()).status == NOT_SERVING
            application.may_load.set()
            assert (await started.read()).status == SERVING
            return loading

    asking = asyncio.create_task(ask_then_load())
    async with running(application, settings) as server:
        assert await asking == [NOT_SERVING, NOT_SERVING, SERVING]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert await statuses(stub) == [SERVING, SERVING, SERVING]
            # The engine is lost: no new requests, but a restart is up to the process itself.
            server.health.set_all(False)
            assert await statuses(stub) == [SERVING, NOT_SERVING, SERVING]
            server.health.set_all(True)
            readiness = stub.Watch(asked("readiness"))
            assert (await readiness.read()).status == SERVING
            server.health.shut_down()
            assert (await readiness.read()).status == NOT_SERVING
            assert await statuses(stub) == [SERVING, NOT_SERVING, SERVING]


async def test_liveness_answers_although_the_server_refuses_every_call_for_overload(serving):
    async with serving(max_concurrent_rpcs=1) as (application, _, client):
        held = client.echo("wait")
        await application.waiting.acquire()
        refused = await client.failure("echo", "hi")
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for name in ("liveness", "readiness"):
            assert (await stub_of(client).Check(asked(name))).status == SERVING
        application.go_on.set()
        await held


async def test_check_of_unknown_service_is_not_found(serving):
    async with serving() as (_, _, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub_of(client).Check(asked("nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_of_unknown_service_says_service_unknown_and_stays_open(serving):
    async with serving() as (_, _, client):
        watch = stub_of(client).Watch(asked("nobody"))
        assert (await watch.read()).status == SERVICE_UNKNOWN
        assert not watch.done()


async def test_watch_streams_every_change(serving, echo):
    async with serving() as (_, server, client):
        watch = stub_of(client).Watch(asked(echo.SERVICE))
        assert (await watch.read()).status == SERVING
        for serving_now, status in ((False, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
            server.health.set(echo.SERVICE, serving_now)
            assert (await watch.read()).status == status


async def test_watcher_receives_changes_after_another_watcher_leaves(serving, echo):
    async with serving() as (_, server, client):
        stays, leaves = (stub_of(client).Watch(asked(echo.SERVICE)) for _ in range(2))
        assert (await stays.read()).status == SERVING
        assert (await leaves.read()).status == SERVING
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves.read()
        server.health.set(echo.SERVICE, False)
        assert (await stays.read()).status == NOT_SERVING


async def test_drain_sends_not_serving_to_watchers_and_ends_their_watch(serving, echo):
    async with serving() as (_, server, client):
        watch = stub_of(client).Watch(asked(""))
        assert (await watch.read()).status == SERVING
        await server.drain()
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_overall_serves_only_when_all_services_do():
    health = Health(["a", "b"])
    assert health.is_serving() is False
    health.set("a", True)
    assert health.is_serving() is False
    health.set("b", True)
    assert health.is_serving() is True


def test_after_shutting_down_nothing_serves_again():
    health = Health(["a"])
    health.shut_down()
    health.set("a", True)
    assert health.is_serving("a") is False
    assert health.is_serving() is False


def test_unknown_service_cannot_be_set():
    with pytest.raises(ValueError, match=r"no service 'b'.*a"):
        Health(["a"]).set("b", True)


async def test_health_answers_while_the_application_loads(echo, make_settings, tmp_path):
    application = echo.EchoApplication()
    application.may_load.clear()
    settings = make_settings(port_file=tmp_path / "ports.json")
    statuses = []

    async def ask_then_load():
        await application.entered.wait()
        port = json.loads(settings.port_file.read_text())["grpc"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(asked(echo.SERVICE))
            statuses.append((await watch.read()).status)
            application.may_load.set()
            statuses.append((await watch.read()).status)

    asking = asyncio.create_task(ask_then_load())
    async with running(application, settings):
        await asking
    assert statuses == [NOT_SERVING, SERVING]
