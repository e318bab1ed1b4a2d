"""Clients that leave, do not read, or are too many; vLLM's own gauge shows the running requests."""

import asyncio
import contextlib
import os
import sys
import textwrap
from pathlib import Path

import grpc
import psutil
import pytest
from llm_server import MAX_RUNNING, MAX_WAITING, chat, details_of, refusal

from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.engine.environment import has_few_cores

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]

ENDLESS = {"ignore_end_of_text": True, "max_tokens": 900}


async def read_to_the_end(call):
    while await call.read() is not grpc.aio.EOF:
        pass


def libraries_of(process):
    return {Path(each.path).name for each in process.memory_maps()}


def computing(engine):
    """Returns the processes of the engine, with the engine core."""
    started = (engine, *engine.children(recursive=True))
    return [each for each in started if each.name().startswith("VLLM")]


async def test_only_the_engines_processes_load_intels_openmp(server, client):
    await client.answer("Count.")
    processes = computing(server.engine_process())
    assert server.engine_process() in processes
    for each in processes:
        assert "libiomp5.so" in libraries_of(each), each
    assert "libiomp5.so" not in libraries_of(server.process)


async def test_the_engine_computes_itself_on_few_cores_bound_as_vllm_binds(server, client):
    await client.answer("Count.")
    engine = server.engine_process()
    processes = computing(engine)
    assert (processes == [engine]) is has_few_cores(len(os.sched_getaffinity(0)))
    # vLLM binds each computing thread to a core.
    may_use = [os.sched_getaffinity(thread.id) for each in processes for thread in each.threads()]
    assert min(map(len, may_use)) == 1


async def test_the_servers_threads_do_not_interrupt_the_engine(server, client):
    await client.answer("Count.")
    engine = server.engine_process()
    policies = [
        {os.sched_getscheduler(thread.id) for thread in each.threads()}
        for each in (psutil.Process(server.process.pid), engine)
    ]
    assert policies == [{os.SCHED_BATCH}, {os.SCHED_OTHER}]


async def test_a_cancelled_stream_frees_its_sequence(server, client):
    before = await server.metric("tidegate_llm_cancelled_total", cause="client")
    call = client.stub.Chat(chat("Count.", **ENDLESS))
    await anext(aiter(call))
    await server.until_metric("vllm:num_requests_running", 1)
    call.cancel()
    await server.until_idle()
    await server.until_metric("tidegate_llm_cancelled_total", before + 1, cause="client")


async def test_a_cancelled_unary_call_frees_its_sequence(server, client):
    call = client.answer("Count.", **ENDLESS)
    asking = asyncio.create_task(call)
    await server.until_metric("vllm:num_requests_running", 1)
    asking.cancel()
    await server.until_idle()


@pytest.mark.parametrize("method", ["Chat", "Complete"])
async def test_a_deadline_that_passes_frees_its_sequence(server, client, method):
    request = chat("Count.", **ENDLESS)
    if method == "Complete":
        request = llm_pb2.CompleteRequest(chat=request)
    code, _ = await refusal(getattr(client.stub, method)(request, timeout=0.5))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await server.until_idle()


async def test_metrics_agree_on_deadlines_and_count_tokens_sent_before(server, client):
    # gRPC rounds a timeout just above a second up to 1.01 s.
    deadlines_s = [0.6, 0.751, 1.0025, 1.0025, 1.1004]
    cut = ("tidegate_llm_cancelled_total", {"cause": "deadline"})
    late = ("grpc_server_handled_total", {"grpc_method": "Chat", "grpc_code": "DeadlineExceeded"})
    sent = ("grpc_server_msg_sent_total", {"grpc_method": "Chat"})
    first = ("tidegate_llm_time_to_first_token_seconds_count", {})
    between = ("tidegate_llm_inter_token_seconds_count", {})
    names = (cut, late, sent, first, between)

    async def counts():
        return [await server.metric(name, **labels) for name, labels in names]

    async def ask(deadline_s):
        pieces = 0
        call = client.stub.Chat(chat("Count.", **ENDLESS), timeout=deadline_s)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pieces += 1
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return pieces

    before = await counts()
    pieces = [await ask(deadline_s) for deadline_s in deadlines_s]
    await server.until_idle()
    await server.until_metric(late[0], before[1] + len(deadlines_s), **late[1])
    grown = [after - then for after, then in zip(await counts(), before, strict=True)]
    assert grown[:2] == [len(deadlines_s)] * 2
    # A call may end during a write; the client then does not count that message.
    assert grown[2] >= sum(pieces) - len(pieces) > 0
    assert grown[3] >= sum(each > 0 for each in pieces)
    assert grown[4] >= sum(each > 1 for each in pieces) > 0


async def test_an_answer_that_ends_counts_its_first_token_once(server, client):
    names = (
        "tidegate_llm_time_to_first_token_seconds_count",
        "tidegate_llm_inter_token_seconds_count",
    )
    before = [await server.metric(name) for name in names]
    await client.stream("Count.", max_tokens=8, ignore_end_of_text=True)
    await client.answer("Count.", max_tokens=8, ignore_end_of_text=True)
    after = [await server.metric(name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 2]


async def test_a_client_that_is_killed_frees_its_sequences(server):
    program = f"""
        import grpc
        from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
        stub = llm_pb2_grpc.LlmServiceStub(grpc.insecure_channel("127.0.0.1:{server.port}"))
        request = llm_pb2.ChatRequest(
            messages=[llm_pb2.Message(role=llm_pb2.ROLE_USER, content="Count.")])
        request.options.sampling.max_tokens = 900
        request.options.sampling.ignore_end_of_text = True
        calls = [stub.Chat(request) for _ in range(3)]
        for call in calls:
            next(call)
        print("streaming", flush=True)
        for call in calls:
            list(call)
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(program)), stdout=asyncio.subprocess.PIPE
    )
    assert await process.stdout.readline() == b"streaming\n"
    await server.until_metric("vllm:num_requests_running", 3)
    process.kill()
    await process.wait()
    await server.until_idle()


async def test_the_call_of_a_client_that_does_not_read_ends_and_frees_its_sequence(server):
    # The smallest flow-control window that HTTP/2 allows, so that it fills at once.
    small = {"grpc.http2.lookahead_bytes": 1, "grpc.http2.bdp_probe": 0}
    async with server.client(**small) as client:
        call = client.stub.Chat(chat("Count.", logprobs=20, **ENDLESS))
        assert (await call.read()).delta.token_ids
        await server.until_metric("vllm:num_requests_running", 1)
        await server.until_idle()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_the_end(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "unread" in caught.value.details()


async def test_excess_requests_are_refused_at_once_and_the_others_answered(server, client):
    capacity = MAX_RUNNING + MAX_WAITING
    refused = []

    async def ask(number):
        request = llm_pb2.CompleteRequest(
            chat=chat(f"Count from {number}.", max_tokens=24, ignore_end_of_text=True)
        )
        try:
            answer = await client.stub.Complete(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            refused.append(error)
            return 0
        return answer.finish.usage.completion_tokens

    tokens = await asyncio.gather(*(ask(number) for number in range(10 * capacity)))
    assert sorted(tokens, reverse=True)[:capacity] == [24] * capacity
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    for error in refused:
        details = details_of(error)
        assert details["ErrorInfo"].reason == "QUEUE_FULL"
        assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0
    await server.until_idle()
    assert await server.metric("tidegate_llm_in_flight_requests") == 0
    assert await client.answer("Hi", max_tokens=1)
