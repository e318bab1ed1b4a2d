"""The routes of the repository: which models there are, and loading and unloading them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.backends import VisionBackend
from tidegate.gateway.context import context_of
from tidegate.gateway.errors import ApiError, ErrorType
from tidegate.gateway.json_documents import read_json
from tidegate.gateway.open_inference import openapi
from tidegate.gateway.open_inference.answers import message_as_json
from tidegate.gateway.open_inference.infer_bodies import read_infer_body
from tidegate.gateway.open_inference.infer_requests import Parameter, fill
from tidegate.gateway.parts import parts_of
from tidegate.gateway.responses import json_response
from tidegate.gateway.vision_calls import call, find_model
from tidegate.inference.v2 import open_inference_pb2 as oip

__all__ = ["router"]

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    ready: bool = False


class _Control(msgspec.Struct, forbid_unknown_fields=True):
    parameters: dict[str, Parameter] = {}


_INDEXES: Final = msgspec.json.Decoder(_Index)
_CONTROLS: Final = msgspec.json.Decoder(_Control)


@router.post(
    "/repository/index",
    summary="List the repository",
    openapi_extra=openapi.INDEX_REQUEST,
    responses=openapi.INDEX,
)
async def repository_index(request: Request) -> Response:
    """Lists the models of the repository and their states."""
    body = await read_infer_body(request)
    wanted = read_json(body, _INDEXES) if body else _Index()
    caller = context_of(request).caller
    listed: list[dict[str, Any]] = []
    for backend in parts_of(request).backends.vision:
        answer = await call(
            request,
            backend,
            backend.inference.RepositoryIndex,
            oip.RepositoryIndexRequest(ready=wanted.ready),
        )
        listed += [message_as_json(each) for each in answer.models if caller.may_see(each.name)]
    return json_response(listed)


@router.post(
    "/repository/models/{model}/load",
    summary="Load a model",
    openapi_extra=openapi.CONTROL_REQUEST,
    responses=openapi.CONTROL,
)
async def load(request: Request, model: openapi.Identifier) -> Response:
    """Loads a model, or loads it again."""
    parameters = await _control(request)
    backend = _controlled(request, model)
    message = oip.RepositoryModelLoadRequest(model_name=model)
    fill(message.parameters, parameters, "parameters")
    await call(request, backend, backend.inference.RepositoryModelLoad, message)
    await parts_of(request).backends.refresh()
    return json_response({})


@router.post(
    "/repository/models/{model}/unload",
    summary="Unload a model",
    openapi_extra=openapi.CONTROL_REQUEST,
    responses=openapi.CONTROL,
)
async def unload(request: Request, model: openapi.Identifier) -> Response:
    """Unloads a model once it has finished the requests that it accepted."""
    parameters = await _control(request)
    backend = _controlled(request, model)
    message = oip.RepositoryModelUnloadRequest(model_name=model)
    fill(message.parameters, parameters, "parameters")
    await call(request, backend, backend.inference.RepositoryModelUnload, message)
    await parts_of(request).backends.refresh()
    return json_response({})


async def _control(request: Request) -> Mapping[str, Parameter]:
    """Reads a request to load or to unload.

    Raises:
        ApiError: Clients may not do so, or the body is wrong.
    """
    if not parts_of(request).settings.model_control:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "clients may not load or unload models through the gateway; it was started without"
            " --model-control",
            ErrorType.PERMISSION,
            "model_control_disabled",
        )
    body = await read_infer_body(request)
    return read_json(body, _CONTROLS).parameters if body else {}


def _controlled(request: Request, name: str) -> VisionBackend:
    """Finds the server of a model, which need not know it yet if there is only one server.

    Raises:
        ApiError: There is no such model, or the caller may not use it.
    """
    backends = parts_of(request).backends
    if name not in backends.vision_models and len(backends.vision) == 1:
        context_of(request).caller.check_model(name)
        return backends.vision[0]
    return find_model(request, name).backend
