"""A server on the real chassis whose calls never end on their own: only deadlines end them.

    async with endless_server() as server:
        server.grpc_port

`Chat` and `Generate` send a token every few milliseconds, or one token and then nothing where the
prompt is ``silent``. `ClassifyStream` answers each request at once and stays open. `Classify` and
`Complete` never answer.
"""

import asyncio
from contextlib import asynccontextmanager

from tidegate.chassis import ChassisSettings, running
from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

_PAUSE_S = 0.003


class _Vision(vision_pb2_grpc.VisionServiceServicer):
    async def Classify(self, request, context):
        await asyncio.Event().wait()

    async def ClassifyStream(self, request_iterator, context):
        async for request in request_iterator:
            answer = vision_pb2.ClassifyStreamResponse(request_id=request.request_id)
            answer.response.results.add()
            yield answer
        await asyncio.Event().wait()


class _Llm(llm_pb2_grpc.LlmServiceServicer):
    async def Complete(self, request, context):
        await asyncio.Event().wait()

    async def Generate(self, request, context):
        async for delta in _tokens(silent=request.prompt.text == "silent"):
            yield llm_pb2.GenerateResponse(delta=delta)

    async def Chat(self, request, context):
        async for delta in _tokens(silent=request.messages[-1].content == "silent"):
            yield llm_pb2.ChatResponse(delta=delta)


async def _tokens(*, silent):
    yield llm_pb2.Delta(text="a", token_ids=[1])
    while not silent:
        await asyncio.sleep(_PAUSE_S)
        yield llm_pb2.Delta(text="a", token_ids=[1])
    await asyncio.Event().wait()


class _Application:
    service_names = ("tidegate.vision.v1.VisionService", "tidegate.llm.v1.LlmService")

    def register(self, server):
        vision_pb2_grpc.add_VisionServiceServicer_to_server(_Vision(), server)
        llm_pb2_grpc.add_LlmServiceServicer_to_server(_Llm(), server)

    @asynccontextmanager
    async def run(self, health):
        health.set_all(True)
        yield


@asynccontextmanager
async def endless_server():
    """Runs the server on a free port."""
    settings = ChassisSettings(grpc_port=0, metrics_port=0, drain_hold_s=0.01)
    async with running(_Application(), settings) as server:
        yield server
