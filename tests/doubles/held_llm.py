"""A test double of the LLM server: its calls last until a test lets them go on.

The real server cannot be made to hold a call before its first token, or after its third, on cue.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc

MODEL = "held"
_PATIENCE_S = 10.0


class HeldLlm(llm_pb2_grpc.LlmServiceServicer):
    """Answers with `tokens` tokens, one a message, and then waits.

    Attributes:
        address: Its address.
        tokens: Tokens before the wait.
        begun: Calls that have begun.
        cancelled: Calls that were cancelled.
        metadata: The metadata of the last call.
        go_on: Lets calls end.
    """

    def __init__(self) -> None:
        self.address = ""
        self.tokens = 0
        self.begun = 0
        self.cancelled = 0
        self.metadata: dict[str, str] = {}
        self.go_on = asyncio.Event()
        self._unfinished: set[grpc.aio.ServicerContext] = set()

    async def until(self, *, begun: int = 0, cancelled: int = 0) -> None:
        """Waits until that many calls have begun, or were cancelled."""
        async with asyncio.timeout(_PATIENCE_S):
            while self.begun < begun or self.cancelled < cancelled:
                await asyncio.sleep(0.001)

    def _begin(self, context: grpc.aio.ServicerContext) -> None:
        self.begun += 1
        self.metadata = dict(context.invocation_metadata())
        self._unfinished.add(context)
        # A handler that is cancelled while it sends a message does not hear of it itself.
        context.add_done_callback(self._end)

    def _end(self, context: grpc.aio.ServicerContext) -> None:
        if context in self._unfinished:
            self._unfinished.remove(context)
            self.cancelled += 1

    async def ListModels(self, request, context):
        return llm_pb2.ListModelsResponse(
            models=[
                llm_pb2.Model(
                    name=MODEL,
                    ready=True,
                    kind=llm_pb2.MODEL_KIND_GENERATE,
                    max_context_tokens=4096,
                )
            ]
        )

    async def Complete(self, request, context):
        self._begin(context)
        await self.go_on.wait()
        self._unfinished.discard(context)
        return llm_pb2.CompleteResponse(
            output=llm_pb2.Delta(text="x" * self.tokens, token_ids=range(self.tokens)),
            finish=self._finish(),
        )

    async def Chat(self, request, context):
        self._begin(context)
        for _ in range(self.tokens):
            yield llm_pb2.ChatResponse(delta=llm_pb2.Delta(text="x", token_ids=[1]))
        await self.go_on.wait()
        self._unfinished.discard(context)
        yield llm_pb2.ChatResponse(finish=self._finish())

    def _finish(self) -> llm_pb2.Finish:
        return llm_pb2.Finish(
            reason=llm_pb2.FINISH_REASON_STOP,
            usage=llm_pb2.Usage(prompt_tokens=7, completion_tokens=self.tokens),
        )


@asynccontextmanager
async def held_llm() -> AsyncIterator[HeldLlm]:
    """Serves the double while the context is open."""
    server = grpc.aio.server()
    held = HeldLlm()
    llm_pb2_grpc.add_LlmServiceServicer_to_server(held, server)
    port = server.add_insecure_port("127.0.0.1:0")
    held.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield held
    finally:
        await server.stop(None)
