"""A vision server that never answers, and notes when a call ends: its client has left."""

import asyncio
import time
from contextlib import asynccontextmanager

import grpc

from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

MODEL = "slow"


class WaitingVision(
    vision_pb2_grpc.VisionServiceServicer, open_inference_pb2_grpc.GRPCInferenceServiceServicer
):
    """The server.

    Attributes:
        address: Where it listens.
        began: Set once a call has come.
        ended: Set once that call has ended.
        ended_at_s: When it ended, in seconds of `time.monotonic`.
    """

    def __init__(self):
        self.address = ""
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.ended_at_s = 0.0

    async def ListModels(self, request, context):
        return vision_pb2.ListModelsResponse(models=[vision_pb2.Model(name=MODEL, version="1")])

    async def Classify(self, request, context):
        await self._wait()

    async def ModelInfer(self, request, context):
        await self._wait()

    async def _wait(self):
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended_at_s = time.monotonic()
            self.ended.set()


@asynccontextmanager
async def waiting_vision():
    """Runs the server on a free port."""
    server = grpc.aio.server()
    double = WaitingVision()
    vision_pb2_grpc.add_VisionServiceServicer_to_server(double, server)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(double, server)
    double.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield double
    finally:
        await server.stop(None)
