"""A test double of the LLM server that answers every request in the form that it asks for.

Its answers have the same few tokens, and as many answers, log probabilities and tool calls as the
request asks for. Random requests need it: no script of messages can foresee them.
"""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import grpc

from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc

MODEL = "answering"
ADAPTER = "pirate"
_TOKENS = ("To", "ky", "o 東")


@asynccontextmanager
async def answering_llm():
    """Runs the server; yields it."""
    server = grpc.aio.server()
    servicer = Answering()
    llm_pb2_grpc.add_LlmServiceServicer_to_server(servicer, server)
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(None)


class Answering(llm_pb2_grpc.LlmServiceServicer):
    """The servicer.

    Attributes:
        calls: How often each method was called.
        target: The address.
    """

    def __init__(self):
        self.calls = Counter()
        self.target = ""

    async def Chat(self, request, context):
        self.calls["Chat"] += 1
        for answer in range(_answers(request)):
            for delta in _chat_deltas(request):
                yield llm_pb2.ChatResponse(delta=delta, answer=answer)
                # Lets the client read each part for itself.
                await asyncio.sleep(0)
            yield llm_pb2.ChatResponse(finish=_chat_finish(request), answer=answer)

    async def Generate(self, request, context):
        self.calls["Generate"] += 1
        yield llm_pb2.GenerateResponse(prompt_logprobs=_prompt_logprobs(request))
        for answer in range(_answers(request)):
            for delta in _text_deltas(request):
                yield llm_pb2.GenerateResponse(delta=delta, answer=answer)
                await asyncio.sleep(0)
            yield llm_pb2.GenerateResponse(finish=_finish(), answer=answer)

    async def Complete(self, request, context):
        self.calls["Complete"] += 1
        if request.HasField("chat"):
            asked = request.chat
            answer = llm_pb2.Answer(output=_whole(_chat_deltas(asked)), finish=_chat_finish(asked))
            prompt_logprobs = []
        else:
            asked = request.generate
            answer = llm_pb2.Answer(output=_whole(_text_deltas(asked)), finish=_finish())
            prompt_logprobs = _prompt_logprobs(asked)
        return llm_pb2.CompleteResponse(
            output=answer.output,
            finish=answer.finish,
            further_answers=[answer] * (_answers(asked) - 1),
            prompt_logprobs=prompt_logprobs,
        )

    async def Embed(self, request, context):
        self.calls["Embed"] += 1
        count = len(request.inputs)
        vector = llm_pb2.EmbedResponse.Embedding(values=[0.6, 0.8])
        return llm_pb2.EmbedResponse(
            embeddings=[vector] * count, usage=llm_pb2.Usage(prompt_tokens=3 * count)
        )

    async def Detokenize(self, request, context):
        return llm_pb2.DetokenizeResponse(text=" ".join(map(str, request.token_ids)))

    async def ListModels(self, request, context):
        model = llm_pb2.Model(
            name=MODEL, version="1", max_context_tokens=2048, lora_adapters=[ADAPTER]
        )
        return llm_pb2.ListModelsResponse(models=[model])


def _answers(request):
    return request.options.sampling.answers or 1


def _calls_tools(chat):
    return bool(chat.tools) and chat.tool_choice.mode != llm_pb2.ToolChoice.MODE_NONE


def _chat_deltas(chat):
    """The parts of an answer: reasoning, and then either a text or a call of the first tool."""
    yield llm_pb2.Delta(reasoning="Hm.", token_ids=[0])
    if not _calls_tools(chat):
        yield from _text_deltas(chat)
        return
    part = llm_pb2.ToolCallDelta
    name = chat.tool_choice.tool or chat.tools[0].name
    yield llm_pb2.Delta(tool_calls=[part(id="call_1", name=name)], token_ids=[1])
    yield llm_pb2.Delta(tool_calls=[part(arguments="{}")], token_ids=[2])


def _text_deltas(request):
    sampling = request.options.sampling
    for number, text in enumerate(_TOKENS):
        logprobs = [_logprobs(text, sampling.logprobs)] if sampling.HasField("logprobs") else []
        yield llm_pb2.Delta(text=text, token_ids=[number], logprobs=logprobs)


def _whole(deltas):
    """Joins the parts of an answer."""
    whole = llm_pb2.Delta()
    for delta in deltas:
        whole.text += delta.text
        whole.reasoning += delta.reasoning
        whole.token_ids.extend(delta.token_ids)
        whole.logprobs.extend(delta.logprobs)
        if whole.tool_calls and delta.tool_calls:
            whole.tool_calls[0].arguments += delta.tool_calls[0].arguments
        else:
            whole.tool_calls.extend(delta.tool_calls)
    return whole


def _logprobs(text, top):
    tokens = [
        llm_pb2.TokenLogprob(
            token_id=rank,
            token=each,
            token_bytes=each.encode(),
            logprob=-0.5 * rank,
            rank=rank,
        )
        for rank, each in enumerate([text, *(f"{text}{rank}" for rank in range(1, top))], 1)
    ]
    return llm_pb2.Logprobs(chosen=tokens[0], top=tokens[:top])


def _prompt_logprobs(request):
    sampling = request.options.sampling
    if not sampling.HasField("prompt_logprobs"):
        return []
    later = [
        llm_pb2.PromptLogprobs(logprobs=_logprobs(text, sampling.prompt_logprobs))
        for text in _TOKENS[1:]
    ]
    return [llm_pb2.PromptLogprobs(), *later]


def _chat_finish(chat):
    return _finish(llm_pb2.FINISH_REASON_TOOL_CALLS if _calls_tools(chat) else None)


def _finish(reason=None):
    return llm_pb2.Finish(
        reason=reason or llm_pb2.FINISH_REASON_STOP,
        usage=llm_pb2.Usage(prompt_tokens=3, completion_tokens=len(_TOKENS)),
    )
