"""A gRPC client that knows nothing but where the controller is; told what to call line by line.

    python xds_client.py BOOTSTRAP-JSON

A process of its own, because gRPC reads its bootstrap once and keeps its xDS client.
"""

import asyncio
import json
import os
import sys
from collections import Counter

os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = sys.argv[1]

import grpc

METHOD = "/tidegate.test.v1.Echo/Say"


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
        told = json.loads(line)
        target = told["target"]
        if target not in channels:
            channels[target] = grpc.aio.insecure_channel(f"xds:///{target}")
        metadata = [tuple(pair) for pair in told["metadata"]]
        answers = Counter()
        for _ in range(told["count"]):
            answers[await call(channels[target], metadata, told["within_s"])] += 1
        print(json.dumps(answers), flush=True)
    for channel in channels.values():
        await channel.close()


asyncio.run(main())
