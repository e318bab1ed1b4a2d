"""A call frees its objects as soon as it ends, without waiting for the garbage collector.

The collector counts objects: a hundred rejected requests of megabytes each would not start it.
"""

import asyncio
import gc

import grpc
import pytest

KINDS = ["echo", "repeat", "collect", "chat"]


@pytest.fixture(autouse=True)
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def freed(application):
    async with asyncio.timeout(20):
        while any(held() is not None for held in application.held):
            await asyncio.sleep(0.01)
    return len(application.held)


@pytest.mark.parametrize("kind", KINDS)
async def test_answered_call_is_freed(serving, kind):
    async with serving() as (application, _, client):
        await client.call(kind, "hold ok")
        assert await freed(application) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", ["refuse", "abort"])
async def test_failed_call_is_freed(serving, kind, ends):
    async with serving() as (application, _, client):
        await client.failure(kind, f"hold {ends}")
        assert await freed(application) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stays", ["wait", "stubborn"])
async def test_cancelled_call_is_freed(serving, kind, stays):
    async with serving() as (application, _, client):
        call = getattr(client, kind)(f"hold {stays}")
        await application.waiting.acquire()
        call.cancel()
        assert await freed(application) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_call_whose_deadline_passed_is_freed(serving, kind):
    async with serving() as (application, _, client):
        error = await client.failure(kind, "hold wait", timeout=0.2)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await freed(application) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_call_that_the_drain_cancelled_is_freed(serving, kind):
    async with serving(drain_deadline_s=0.1) as (application, server, client):
        call = asyncio.create_task(client.failure(kind, "hold wait"))
        await application.waiting.acquire()
        await server.drain()
        assert (await call).code() is grpc.StatusCode.UNAVAILABLE
        assert await freed(application) == 1
