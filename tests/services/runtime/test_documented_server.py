"""The server of docs/tracing.md, as a program: its spans are those that the page promises."""

import asyncio
import json
import os
import sys
from pathlib import Path

import grpc
from otlp_collectors import grpc_collector

PAGE = Path(__file__).parents[3] / "docs/tracing.md"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WAIT_S = 60.0


def documented():
    (block,) = [
        each.partition("```")[0]
        for each in PAGE.read_text().split("```python\n")[1:]
        if "request_span" in each.partition("```")[0]
    ]
    return block


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.05)


async def test_the_documented_server_records_its_stages_in_its_callers_trace(tmp_path):
    program, ports = tmp_path / "shouter.py", tmp_path / "ports.json"
    program.write_text(documented())
    async with grpc_collector() as (received, collector):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, program, f"--otlp-endpoint=http://{collector}"),
            f"--port-file={ports}",
            env={**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "50"},
        )
        try:
            await until(ports.exists)
            address = f"127.0.0.1:{json.loads(ports.read_text())['grpc']}"
            async with grpc.aio.insecure_channel(address) as channel:
                answer = await channel.unary_unary("/demo.Shouter/Shout")(
                    b"hello", metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")], timeout=WAIT_S
                )
            assert answer == b"HELLO"
            await until(lambda: len(received.spans) == 3)
        finally:
            process.terminate()
            await process.wait()
    spans = {each.name: each for each in received.spans}
    assert {each.trace_id.hex() for each in received.spans} == {TRACE}
    request, wait, shout = (spans[name] for name in ("demo.Shouter/Shout", "wait", "shout"))
    assert request.parent_span_id.hex() == PARENT
    assert wait.parent_span_id == shout.parent_span_id == request.span_id
    attributes = {
        it.key: it.value.string_value for each in spans.values() for it in each.attributes
    }
    assert attributes["tidegate.model.version"] == "2"
    assert attributes["tidegate.stage"] == "queue"
    assert attributes["letters"] == "upper"
    (resource,) = {frozenset(each.items()) for each in received.resources}
    assert dict(resource)["service.name"] == "shouter"
    assert dict(resource)["host.name"]
