"""Embeddings: texts or token ids in, vectors out, as numbers or as base64 of float32."""

import base64
import sys
from array import array
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.errors import ApiError
from tidegate.gateway.openai.calls import begin_call, find_model
from tidegate.gateway.openai.completions import (
    Prompts,
    fill_prompt,
    listed_prompts,
    prompt_tokens,
)
from tidegate.gateway.openai.fields import RequestModel, ignored
from tidegate.gateway.openai.reading import read_request
from tidegate.gateway.responses import json_response
from tidegate.llm.v1 import llm_pb2

__all__ = ["EmbeddingRequest", "create_embeddings"]

_MAX_INPUTS: Final = 2048
_BATCH: Final = 256
"""Most inputs of one call; see ``EmbedRequest``."""


class EmbeddingRequest(RequestModel):
    """A request for embeddings."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "dimensions": "the model's vectors have one length; shorten them yourself",
        "truncate_prompt_tokens": "shorten the input",
    }

    model: str = Field(description="A name that /v1/models lists, of an embedding model.")
    input: Prompts = Field(description="Up to 2048 texts, or lists of token ids.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="float (default), or base64 of little-endian float32."
    )
    user: str | None = ignored()


async def create_embeddings(request: Request) -> Response:
    """Turns texts into vectors."""
    asked = await read_request(request, EmbeddingRequest)
    model = find_model(request, asked.model)
    inputs = listed_prompts(asked.input)
    if len(inputs) > _MAX_INPUTS:
        raise ApiError.invalid(
            "input",
            f"input: must hold at most {_MAX_INPUTS}, not {len(inputs)}",
            code="invalid_value",
        )
    first = 0
    call = begin_call(
        request,
        model,
        "embeddings",
        lambda: _params(first, len(inputs)),
        prompt_tokens=prompt_tokens(inputs),
    )
    as_base64 = asked.encoding_format == "base64"
    vectors: list[Any] = []
    async with call.unary():
        # One batch after the other, so that one request does not fill the server's queue.
        for first in range(0, len(inputs), _BATCH):
            message = llm_pb2.EmbedRequest(model=model.facts.name)
            for each in inputs[first : first + _BATCH]:
                fill_prompt(each, message.inputs.add())
            response = await call.answer(call.stub.Embed, message)
            vectors += [_vector(each, as_base64=as_base64) for each in response.embeddings]
            call.context.prompt_tokens += response.usage.prompt_tokens
    tokens = call.context.prompt_tokens
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": each}
                for index, each in enumerate(vectors)
            ],
            "model": model.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
        headers=call.reservation.headers,
    )


def _vector(embedding: llm_pb2.EmbedResponse.Embedding, *, as_base64: bool) -> Any:
    if not as_base64:
        return list(embedding.values)
    values = array("f", embedding.values)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()


def _params(first: int, inputs: int) -> dict[str, str]:
    if inputs == 1:
        names = {"inputs[0]": "input"}
    else:
        batch = range(min(_BATCH, inputs - first))
        names = {f"inputs[{index}]": f"input[{first + index}]" for index in batch}
    return {
        f"{path}{field}": name
        for path, name in names.items()
        for field in ("", ".text", ".token_ids", ".token_ids.ids")
    }
