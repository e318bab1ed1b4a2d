"""The models that clients may name."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.backends import LanguageModel
from tidegate.gateway.context import context_of
from tidegate.gateway.openai.calls import find_model
from tidegate.gateway.parts import parts_of
from tidegate.gateway.responses import json_response

__all__ = ["list_models", "retrieve_model"]


async def list_models(request: Request) -> Response:
    """Lists the models that the caller may use."""
    caller = context_of(request).caller
    models = parts_of(request).backends.language_models
    data = [_model(models[name]) for name in sorted(models) if caller.may_see(name)]
    return json_response({"object": "list", "data": data})


async def retrieve_model(request: Request) -> Response:
    """Describes a model."""
    return json_response(_model(find_model(request, request.path_params["model"])))


def _model(model: LanguageModel) -> dict[str, Any]:
    """Describes a model as vLLM's server does: ``root`` is what it is made of."""
    facts = model.facts
    since_s = facts.loaded_at.seconds or int(model.since_s)
    return {
        "id": model.name,
        "object": "model",
        "created": since_s,
        "owned_by": "tidegate",
        "root": facts.name,
        "parent": facts.name if model.adapter else None,
        "max_model_len": facts.max_context_tokens or None,
    }
