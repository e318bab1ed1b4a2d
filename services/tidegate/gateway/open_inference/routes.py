"""The routes below ``/v2``."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from importlib.metadata import version as version_of
from typing import Any, Final

import grpc
import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.backends import VisionBackend
from tidegate.gateway.context import context_of
from tidegate.gateway.errors import ApiError, ErrorType
from tidegate.gateway.json_documents import read_json
from tidegate.gateway.open_inference import openapi
from tidegate.gateway.open_inference.answers import message_as_json, write_infer
from tidegate.gateway.open_inference.infer_bodies import (
    LENGTH_HEADER,
    header_length_of,
    read_infer_body,
)
from tidegate.gateway.open_inference.infer_requests import Parameter, fill, read_infer
from tidegate.gateway.parts import parts_of
from tidegate.gateway.responses import json_response
from tidegate.gateway.vision_calls import admitted, call, find_model
from tidegate.inference.v2 import open_inference_pb2 as oip

__all__ = ["router"]

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

_EXTENSIONS: Final = (
    *("binary_tensor_data", "classification", "model_configuration", "model_repository"),
    "statistics",
)
_READY_TIMEOUT_S: Final = 3.0


@router.get("", summary="Describe the server", responses=openapi.SERVER)
async def server_metadata() -> Response:
    """Returns the name, the version and the extensions."""
    return json_response(
        {"name": "tidegate", "version": version_of("tidegate"), "extensions": _EXTENSIONS}
    )


@router.get("/health/live", summary="Tell whether the gateway is alive", responses=openapi.LIVE)
async def live() -> Response:
    """Tells that the gateway is alive."""
    return json_response({"live": True})


@router.get("/health/ready", summary="Tell whether models are ready", responses=openapi.READY)
async def ready(request: Request) -> Response:
    """Tells whether a vision server is ready, and the gateway is not draining."""
    parts = parts_of(request)

    async def is_ready(backend: VisionBackend) -> bool:
        try:
            answer = await backend.inference.ServerReady(
                oip.ServerReadyRequest(), timeout=_READY_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
        return answer.ready

    answers = await asyncio.gather(*map(is_ready, parts.backends.vision))
    return _readiness({}, is_ready=any(answers) and not parts.in_flight.draining)


@router.get("/models", summary="List the models", responses=openapi.MODELS)
async def models(request: Request) -> Response:
    """Lists the names of the models, as KServe does."""
    caller = context_of(request).caller
    names = sorted(parts_of(request).backends.vision_models)
    return json_response({"models": [name for name in names if caller.may_see(name)]})


@router.get("/models/stats", summary="Statistics of all models", responses=openapi.STATS)
async def all_statistics(request: Request) -> Response:
    """Returns counts and durations of all models."""
    caller = context_of(request).caller
    statistics: list[dict[str, Any]] = []
    for backend in parts_of(request).backends.vision:
        answer = await call(
            request, backend, backend.inference.ModelStatistics, oip.ModelStatisticsRequest()
        )
        statistics += [message_as_json(e) for e in answer.model_stats if caller.may_see(e.name)]
    return json_response({"model_stats": statistics})


@router.get(
    "/models/{model}/versions/{version}", summary="Describe a version", responses=openapi.METADATA
)
@router.get("/models/{model}", summary="Describe a model", responses=openapi.METADATA)
async def model_metadata(request: Request, model: str, version: str = "") -> Response:
    """Returns the versions, inputs and outputs of a model."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelMetadata,
        oip.ModelMetadataRequest(name=found.facts.name, version=version),
    )
    return json_response(message_as_json(answer))


@router.get(
    "/models/{model}/versions/{version}/ready",
    summary="Tell whether a version is ready",
    responses=openapi.MODEL_READY,
)
@router.get(
    "/models/{model}/ready",
    summary="Tell whether a model is ready",
    responses=openapi.MODEL_READY,
)
async def model_ready(request: Request, model: str, version: str = "") -> Response:
    """Tells whether a model accepts requests."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelReady,
        oip.ModelReadyRequest(name=found.facts.name, version=version),
    )
    return _readiness({"name": model}, is_ready=answer.ready)


@router.get(
    "/models/{model}/versions/{version}/config",
    summary="Return the configuration of a version",
    responses=openapi.CONFIG,
)
@router.get(
    "/models/{model}/config",
    summary="Return the configuration of a model",
    responses=openapi.CONFIG,
)
async def model_config(request: Request, model: str, version: str = "") -> Response:
    """Returns a model's configuration, in the form of Triton's."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelConfig,
        oip.ModelConfigRequest(name=found.facts.name, version=version),
    )
    return json_response(message_as_json(answer.config))


@router.get(
    "/models/{model}/versions/{version}/stats",
    summary="Statistics of a version",
    responses=openapi.STATS,
)
@router.get("/models/{model}/stats", summary="Statistics of a model", responses=openapi.STATS)
async def statistics(request: Request, model: str, version: str = "") -> Response:
    """Returns counts and durations of a model."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelStatistics,
        oip.ModelStatisticsRequest(name=found.facts.name, version=version),
    )
    return json_response(message_as_json(answer))


@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Run a version of a model",
    description=openapi.INFER_DESCRIPTION,
    openapi_extra=openapi.INFER_REQUEST,
    responses=openapi.INFER,
)
@router.post(
    "/models/{model}/infer",
    summary="Run a model",
    description=openapi.INFER_DESCRIPTION,
    openapi_extra=openapi.INFER_REQUEST,
    responses=openapi.INFER,
)
async def infer(request: Request, model: str, version: str = "") -> Response:
    """Runs a model on tensors."""
    header_length = header_length_of(request)
    body = await read_infer_body(request)
    found = find_model(request, model)
    parsed = read_infer(body, header_length, found.facts.name, version, name=model)
    del body
    with admitted(request) as headers:
        answer = await call(
            request,
            found.backend,
            found.backend.inference.ModelInfer,
            parsed.message,
            parsed.params,
        )
    written, length = write_infer(answer, parsed.forms)
    if length is None:
        return json_response(written, headers=headers)
    return Response(
        written,
        headers={**headers, LENGTH_HEADER: str(length)},
        media_type="application/octet-stream",
    )


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
async def load(request: Request, model: str) -> Response:
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
async def unload(request: Request, model: str) -> Response:
    """Unloads a model once it has finished the requests that it accepted."""
    parameters = await _control(request)
    backend = _controlled(request, model)
    message = oip.RepositoryModelUnloadRequest(model_name=model)
    fill(message.parameters, parameters, "parameters")
    await call(request, backend, backend.inference.RepositoryModelUnload, message)
    await parts_of(request).backends.refresh()
    return json_response({})


_METHODS: Final = ["GET", "POST"]


@router.api_route("/systemsharedmemory/{rest:path}", methods=_METHODS, include_in_schema=False)
@router.api_route("/cudasharedmemory/{rest:path}", methods=_METHODS, include_in_schema=False)
async def shared_memory() -> Response:
    """Refuses an extension of Triton."""
    raise _unsupported("shared memory is not supported; send tensors in the request")


@router.api_route("/models/{model}/trace/setting", methods=_METHODS, include_in_schema=False)
@router.api_route("/trace/setting", methods=_METHODS, include_in_schema=False)
@router.api_route("/logging", methods=_METHODS, include_in_schema=False)
async def server_settings() -> Response:
    """Refuses an extension of Triton."""
    raise _unsupported(
        "clients cannot change tracing or logging; the servers' own settings do, when they start"
    )


def _unsupported(message: str) -> ApiError:
    return ApiError(HTTPStatus.NOT_IMPLEMENTED, message, code="unsupported")


def _readiness(told: dict[str, Any], *, is_ready: bool) -> Response:
    # The protocol wants 200 or any 4xx.
    status = HTTPStatus.OK if is_ready else HTTPStatus.BAD_REQUEST
    return json_response({**told, "ready": is_ready}, status)


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
