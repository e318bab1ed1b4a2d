"""A proxyless gRPC client that reads the calls to make from standard input, one line for each set.

    python xds_client.py BOOTSTRAP-JSON

It needs its own process, because gRPC reads its bootstrap once and keeps its xDS client.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter

os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = sys.argv[1]

import grpc

METHOD = "/tidegate.test.v1.Echo/Say"
# Methods of the server that never ends a call.
ENDLESS = {
    False: "/tidegate.llm.v1.LlmService/Complete",
    True: "/tidegate.llm.v1.LlmService/Chat",
}
# A ChatRequest with one message.
QUESTION = b"\x0a\x04\x12\x02hi"


async def end(channel, stream, within_s):
    if not stream:
        call = channel.unary_unary(ENDLESS[stream])(b"", timeout=within_s, wait_for_ready=True)
    else:
        call = channel.unary_stream(ENDLESS[stream])(
            QUESTION, timeout=within_s, wait_for_ready=True
        )
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
    return (await call.code()).name


async def call(channel, metadata, within_s):
    try:
        answer = await channel.unary_unary(METHOD)(
            b"", metadata=metadata, timeout=within_s, wait_for_ready=True
        )
        return json.loads(answer)[0]
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def main():
    channels = {}
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        target = order["target"]
        if target not in channels:
            channels[target] = grpc.aio.insecure_channel(f"xds:///{target}")
        channel, within_s, answers = channels[target], order["within_s"], Counter()
        if "stream" in order:
            calls = (end(channel, order["stream"], within_s) for _ in range(order["count"]))
            answers.update(await asyncio.gather(*calls))
        else:
            metadata = [tuple(pair) for pair in order["metadata"]]
            for _ in range(order["count"]):
                answers[await call(channel, metadata, within_s)] += 1
        print(json.dumps(answers), flush=True)
    for channel in channels.values():
        await channel.close()


asyncio.run(main())
