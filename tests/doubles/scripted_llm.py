"""A test double of the LLM server that sends given messages: answers that no small model gives."""

import asyncio
from dataclasses import dataclass, field

from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc


@dataclass
class Scripted(llm_pb2_grpc.LlmServiceServicer):
    """The servicer.

    Attributes:
        messages: What a stream sends: messages, events that it waits for, and statuses (a code and
            a text) that end it.
        complete: What a unary call answers, after the events and statuses in `messages`.
        requests: What it was asked.
        metadata: The metadata of the last call.
        fail: Fails each call instead, if set.
        ended: Set when a call has ended, in whichever way.
        target: The address.
    """

    messages: list = field(default_factory=list)
    complete: llm_pb2.CompleteResponse = field(default_factory=llm_pb2.CompleteResponse)
    requests: list = field(default_factory=list)
    metadata: dict = field(default_factory=dict)
    fail: object = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    target: str = ""

    async def _enter(self, request, context):
        if self.fail is not None:
            await self.fail(request, context)
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        context.add_done_callback(lambda _: self.ended.set())

    async def _stream(self, request, context):
        await self._enter(request, context)
        for message in self.messages:
            match message:
                case asyncio.Event():
                    await message.wait()
                case (code, text):
                    await context.abort(code, text)
                case _:
                    yield message

    Chat = Generate = _stream

    async def Complete(self, request, context):
        await self._enter(request, context)
        for message in self.messages:
            match message:
                case asyncio.Event():
                    await message.wait()
                case (code, text):
                    await context.abort(code, text)
        return self.complete

    async def Embed(self, request, context):
        self.requests.append(request)
        count = len(request.inputs)
        vector = llm_pb2.EmbedResponse.Embedding(values=[0.6, 0.8])
        return llm_pb2.EmbedResponse(
            embeddings=[vector] * count, usage=llm_pb2.Usage(prompt_tokens=3 * count)
        )

    async def Detokenize(self, request, context):
        return llm_pb2.DetokenizeResponse(text=" ".join(map(str, request.token_ids)))

    async def ListModels(self, request, context):
        model = llm_pb2.Model(
            name="scripted", version="1", max_context_tokens=2048, lora_adapters=["pirate"]
        )
        return llm_pb2.ListModelsResponse(models=[model])
