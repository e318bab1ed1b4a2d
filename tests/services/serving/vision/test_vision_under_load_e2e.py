"""A server process under overload, and one that gets SIGTERM under load."""

import asyncio
import json
import os
import signal
import time
from collections import Counter

import grpc
import psutil
import pytest

from tidegate.vision.v1 import vision_pb2 as pb
from tidegate.vision.v1 import vision_pb2_grpc

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

OK, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
LATE, UNAVAILABLE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE
IMAGES = 16
DEADLINE_S = 1.5
LARGE_BYTES = 3_000_000


def request(images=IMAGES):
    """Images that cost the client little and the server as much as any."""
    image = pb.Image(raw=pb.RawImage(height=8, width=8, data=bytes(range(192))))
    return pb.ClassifyRequest(images=[image] * images, top_k=1)


async def rate(stub):
    """Requests a second that the busy server completes."""

    async def one_after_another(count):
        for _ in range(count):
            await stub.Classify(request())

    await one_after_another(2)
    began = time.monotonic()
    await asyncio.gather(*(one_after_another(8) for _ in range(4)))
    return 32 / (time.monotonic() - began)


async def test_ten_times_the_load_is_refused_early_and_accepted_requests_are_in_time(
    vision_process, channel_to, details_of
):
    process, address, _ = await vision_process("--queue-images=128", "--max-images-per-request=64")
    memory = psutil.Process(process.pid)
    codes, refusals, late_answers, most_bytes = Counter(), [], 0, 0
    async with channel_to(address) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        capacity = await rate(stub)
        before_bytes = memory.memory_info().rss

        async def ask(client):
            nonlocal late_answers
            began = time.monotonic()
            try:
                await stub.Classify(
                    request(),
                    timeout=DEADLINE_S,
                    metadata=[("x-tidegate-client", str(client))],
                )
                codes[OK] += 1
                late_answers += time.monotonic() > began + DEADLINE_S + 0.1
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1
                if error.code() is EXHAUSTED:
                    refusals.append(error)

        began, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while (elapsed_s := time.monotonic() - began) < 3:
                while sent < 10 * capacity * elapsed_s:
                    group.create_task(ask(sent % 5))
                    sent += 1
                most_bytes = max(most_bytes, memory.memory_info().rss)
                await asyncio.sleep(0.01)
    assert codes.keys() <= {OK, EXHAUSTED, LATE}
    assert late_answers == 0
    # The server keeps its usual throughput; it refuses the rest at once with a retry delay.
    assert codes[OK] > capacity
    # A simulated test measures how many are late; here the client competes for the cores.
    assert codes[LATE] <= 0.1 * (codes[OK] + codes[LATE])
    assert codes[EXHAUSTED] > sent / 2
    for error in refusals:
        details = details_of(error)
        assert details["ErrorInfo"].reason in {"QUEUE_FULL", "DEADLINE_WOULD_PASS"}
        assert 0 < details["RetryInfo"].retry_delay.ToMilliseconds() < 10_000
    assert most_bytes - before_bytes < 100 << 20


async def test_large_refused_requests_do_not_stay_in_memory(vision_process, channel_to):
    process, address, _ = await vision_process()
    memory = psutil.Process(process.pid)
    refused = pb.ClassifyRequest(images=[pb.Image(encoded=b"no image" + bytes(LARGE_BYTES))])
    async with channel_to(address) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        await stub.Classify(request())
        before_bytes = memory.memory_info().rss
        for _ in range(100):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(refused)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert memory.memory_info().rss - before_bytes < 30 * LARGE_BYTES


async def test_large_requests_to_a_full_queue_do_not_stay_in_memory(vision_process, channel_to):
    process, address, _ = await vision_process("--queue-images=64")
    memory = psutil.Process(process.pid)
    large = pb.ClassifyRequest(images=[pb.Image(encoded=bytes(LARGE_BYTES))])
    codes = Counter()
    async with channel_to(address) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        await stub.Classify(request(64))
        before_bytes = memory.memory_info().rss

        async def fill_the_queue():
            while True:
                await asyncio.gather(stub.Classify(request(64)), return_exceptions=True)

        filling = asyncio.create_task(fill_the_queue())
        for _ in range(100):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(large)
            codes[caught.value.code()] += 1
        filling.cancel()
        most_bytes = memory.memory_info().rss - before_bytes
    assert codes[EXHAUSTED] >= 50
    assert most_bytes < 30 * LARGE_BYTES


async def test_sigterm_under_load_loses_no_accepted_request(vision_process, channel_to):
    clients = 12
    process, address, log = await vision_process("--drain-hold-s=0.3", "--log-format=json")
    codes = Counter()

    async def call_until_refused(stub):
        while True:
            try:
                response = await stub.Classify(request(2), timeout=60)
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1
                return
            assert len(response.results) == 2
            codes[OK] += 1

    channels = [channel_to(address) for _ in range(3)]
    async with asyncio.TaskGroup() as callers:
        for number in range(clients):
            stub = vision_pb2_grpc.VisionServiceStub(channels[number % 3])
            callers.create_task(call_until_refused(stub))
        while codes[OK] < 5 * clients:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    for channel in channels:
        await channel.close()
    async with asyncio.timeout(30):
        assert await process.wait() == 0
    # Every client was refused exactly once, at its last call.
    assert codes.keys() == {OK, UNAVAILABLE}
    assert codes[UNAVAILABLE] == clients
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line["cancelled"] for line in lines if line["event"] == "drained"] == [0]
    assert [line["event"] for line in lines if line.get("level") == "error"] == []
    assert "model unloaded" in {line["event"] for line in lines}


@pytest.mark.parametrize(
    ("flag", "policy"),
    [("--batch-scheduling", os.SCHED_BATCH), ("--no-batch-scheduling", os.SCHED_OTHER)],
)
async def test_no_thread_preempts_another_unless_configured(vision_process, flag, policy):
    process, address, _ = await vision_process(flag)
    async with grpc.aio.insecure_channel(address) as channel:
        await vision_pb2_grpc.VisionServiceStub(channel).Classify(request())
    threads = [thread.id for thread in psutil.Process(process.pid).threads()]
    assert len(threads) > 4
    assert {os.sched_getscheduler(each) for each in threads} == {policy}
