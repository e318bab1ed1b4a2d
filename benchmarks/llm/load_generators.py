"""The load generators, each a separate process: ``python load_generators.py KIND TARGET...``.

All do the same work for each message: count its tokens and take the time. The baseline is
``AsyncLLM`` without a server: its load generator is a task in the process that holds the engine's
client, and nothing crosses a network connection. The other load generators call a server.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from workloads import answer_commands

from tidegate.serving.llm.engine_process.norm_kernels import priorities
from tidegate.serving.llm.engine_process.plugin import HAS_KERNELS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["CONTEXT_TOKENS", "LOAD_GENERATORS", "MAX_RUNNING", "MODEL_NAME"]

CONTEXT_TOKENS = 2048
MAX_RUNNING = 64
MODEL_NAME = "smollm2"


async def _baseline(model: str, dtype: str) -> None:
    """Loads the engine in this process and calls it directly."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs.engine import tokens_input
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=model,
        dtype=dtype,
        enforce_eager=current_platform.is_cpu(),
        max_model_len=CONTEXT_TOKENS,
        max_num_seqs=MAX_RUNNING,
    )
    if HAS_KERNELS in os.environ:
        arguments.ir_op_priority = priorities()
    engine = AsyncLLM.from_engine_args(arguments)
    tokenizer, number = engine.get_tokenizer(), iter(range(10**9))

    async def stream(prompt: str, tokens: int) -> AsyncIterator[int]:
        parameters = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        engine_input = tokens_input(tokenizer.encode(prompt))
        async for output in engine.generate(engine_input, parameters, f"{next(number)}"):
            yield len(output.outputs[0].token_ids)

    try:
        await answer_commands(stream)
    finally:
        engine.shutdown()


async def _tidegate(address: str) -> None:
    """Calls the Tidegate server over gRPC."""
    # Imported before grpc: it makes gRPC's core read sockets on the polling thread, as the server.
    import tidegate.chassis  # noqa: F401

    # isort: split
    import grpc

    from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)

        async def stream(prompt: str, tokens: int) -> AsyncIterator[int]:
            sampling = llm_pb2.SamplingParameters(
                temperature=0, max_tokens=tokens, ignore_end_of_text=True
            )
            request = llm_pb2.GenerateRequest(
                prompt=llm_pb2.Prompt(text=prompt),
                options=llm_pb2.GenerationOptions(sampling=sampling),
            )
            async for piece in stub.Generate(request):
                yield len(piece.delta.token_ids)

        await answer_commands(stream)


async def _openai(address: str) -> None:
    """Calls vLLM's OpenAI server over HTTP with server-sent events."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def stream(prompt: str, tokens: int) -> AsyncIterator[int]:
            body = {
                "model": MODEL_NAME,
                "prompt": prompt,
                "temperature": 0,
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": True,
                "return_token_ids": True,
            }
            async with session.post(f"http://{address}/v1/completions", json=body) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        choice = json.loads(line[6:])["choices"][0]
                        yield len(choice["token_ids"] or ())

        await answer_commands(stream)


LOAD_GENERATORS = {"baseline": _baseline, "tidegate": _tidegate, "openai": _openai}
"""By kind. Arguments: the model's folder and its data type, or the address of the server."""


if __name__ == "__main__":
    import uvloop

    uvloop.run(LOAD_GENERATORS[sys.argv[1]](*sys.argv[2:]))
