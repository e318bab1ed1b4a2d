"""The routes of OpenAI's API, and their description for OpenAPI.

Handlers read bodies themselves, so FastAPI does not know their forms: the description is made here
from the same models that check the requests.
"""

from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel

from tidegate.gateway.openai.chat import ChatCompletionRequest, create_chat_completion
from tidegate.gateway.openai.completions import CompletionRequest, create_completion
from tidegate.gateway.openai.embeddings import EmbeddingRequest, create_embeddings
from tidegate.gateway.openai.models import list_models, retrieve_model
from tidegate.gateway.openai.replies import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    EmbeddingList,
    ErrorReply,
    ModelCard,
    ModelList,
    ResponseReply,
)
from tidegate.gateway.openai.responses.request import ResponseRequest
from tidegate.gateway.openai.responses.service import create_response

__all__ = ["router"]

router: Final = APIRouter(prefix="/v1", tags=["OpenAI"])

_QUESTION: Final = "What is the capital of Japan?"
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorReply, "description": "A field is wrong; `param` names it."},
    401: {"model": ErrorReply, "description": "The API key is wrong."},
    403: {"model": ErrorReply, "description": "The API key may not use the model."},
    404: {"model": ErrorReply, "description": "There is no such model."},
    429: {"model": ErrorReply, "description": "Too many requests; retry-after says when."},
    503: {"model": ErrorReply, "description": "No server of the model answers."},
}


def _described(
    request: type[BaseModel],
    reply: type[BaseModel],
    examples: dict[str, dict[str, Any]],
    events: type[BaseModel] | dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the arguments of a route that describe its request and its replies.

    Args:
        request: The model of the request.
        reply: The model of the reply.
        examples: Requests, by a short description of each.
        events: The form of the events of a streamed reply; None if it cannot be streamed.
    """
    success: dict[str, Any] = {"model": reply, "description": "The reply."}
    if events is not None:
        success["content"] = {"text/event-stream": {"schema": _event_schema(events)}}
    described = {
        name.lower().replace(" ", "-"): {"summary": name, "value": value}
        for name, value in examples.items()
    }
    return {
        "response_model": None,
        "responses": {200: success, **_ERRORS},
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _schema(request), "examples": described}
                },
            }
        },
    }


def _event_schema(events: type[BaseModel] | dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a server-sent event; OpenAPI 3.1 has no other place for it."""
    schema = events if isinstance(events, dict) else _schema(events)
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [schema, _schema(ErrorReply)]},
    }
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string"},
            "data": {"anyOf": [{"type": "string", "const": "[DONE]"}, data]},
        },
        "required": ["data"],
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Returns a model's JSON Schema, with the definitions where they are used."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        match value:
            case {"$ref": str(name), **others}:
                return inlined({**definitions[name.rpartition("/")[2]], **others})
            case dict():
                return {key: inlined(each) for key, each in value.items()}
            case list():
                return [inlined(each) for each in value]
            case _:
                return value

    described: dict[str, Any] = inlined(schema)
    return described


router.post(
    "/chat/completions",
    **_described(
        ChatCompletionRequest,
        ChatCompletion,
        {
            "A question": {
                "model": "smollm2",
                "messages": [{"role": "user", "content": _QUESTION}],
                "max_completion_tokens": 24,
            },
            "A stream": {
                "model": "smollm2",
                "messages": [{"role": "user", "content": _QUESTION}],
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            "JSON of a schema": {
                "model": "smollm2",
                "messages": [{"role": "user", "content": _QUESTION}],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "city",
                        "schema": {
                            "type": "object",
                            "properties": {"city": {"type": "string"}},
                            "required": ["city"],
                            "additionalProperties": False,
                        },
                    },
                },
            },
        },
        ChatCompletionChunk,
    ),
)(create_chat_completion)

router.post(
    "/completions",
    **_described(
        CompletionRequest,
        Completion,
        {"A text": {"model": "smollm2", "prompt": "The capital of Japan is", "max_tokens": 8}},
        Completion,
    ),
)(create_completion)

router.post(
    "/embeddings",
    **_described(
        EmbeddingRequest,
        EmbeddingList,
        {"Two texts": {"model": "bge", "input": ["a red boat", "a blue boat"]}},
    ),
)(create_embeddings)

router.post(
    "/responses",
    **_described(
        ResponseRequest,
        ResponseReply,
        {"A question": {"model": "smollm2", "input": _QUESTION, "max_output_tokens": 24}},
        {
            "type": "object",
            "properties": {"type": {"type": "string"}, "sequence_number": {"type": "integer"}},
            "required": ["type", "sequence_number"],
        },
    ),
)(create_response)

router.get(
    "/models",
    response_model=None,
    responses={200: {"model": ModelList, "description": "The models."}, 401: _ERRORS[401]},
)(list_models)

router.get(
    "/models/{model:path}",
    response_model=None,
    responses={
        200: {"model": ModelCard, "description": "The model."},
        401: _ERRORS[401],
        404: _ERRORS[404],
    },
    openapi_extra={
        "parameters": [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "description": "The model's name; it may have slashes.",
                "schema": {"type": "string"},
            }
        ]
    },
)(retrieve_model)
