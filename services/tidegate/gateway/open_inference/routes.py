"""The routes below ``/v2``."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.metadata import version as version_of
from typing import Any, Final

import grpc
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.backends import VisionBackend
from tidegate.gateway.context import context_of
from tidegate.gateway.errors import ApiError
from tidegate.gateway.open_inference import openapi
from tidegate.gateway.open_inference.answers import message_as_json, write_infer
from tidegate.gateway.open_inference.infer_bodies import (
    LENGTH_HEADER,
    header_length_of,
    read_infer_body,
)
from tidegate.gateway.open_inference.infer_requests import read_infer
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


Handler = Callable[[Request, str, str], Awaitable[Response]]


def _of_model(method: str, suffix: str, **described: Any) -> Callable[[Handler], Handler]:
    """Registers a handler for a model, and for one of its versions."""

    def register(handler: Handler) -> Handler:
        async def of_model(request: Request, model: openapi.Identifier) -> Response:
            return await handler(request, model, "")

        async def of_version(
            request: Request, model: openapi.Identifier, version: openapi.Identifier
        ) -> Response:
            return await handler(request, model, version)

        name = handler.__name__
        for path, route in (
            (f"/models/{{model}}{suffix}", of_model),
            (f"/models/{{model}}/versions/{{version}}{suffix}", of_version),
        ):
            route.__doc__ = handler.__doc__
            router.add_api_route(
                path, route, methods=[method], name=f"{name}_{route.__name__}", **described
            )
        return handler

    return register


@_of_model("GET", "", summary="Describe a model", responses=openapi.METADATA)
async def model_metadata(request: Request, model: str, version: str) -> Response:
    """Returns the versions, inputs and outputs of a model."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelMetadata,
        oip.ModelMetadataRequest(name=found.facts.name, version=version),
    )
    return json_response(message_as_json(answer))


@_of_model("GET", "/ready", summary="Tell whether a model is ready", responses=openapi.MODEL_READY)
async def model_ready(request: Request, model: str, version: str) -> Response:
    """Tells whether a model accepts requests."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelReady,
        oip.ModelReadyRequest(name=found.facts.name, version=version),
    )
    return _readiness({"name": model}, is_ready=answer.ready)


@_of_model("GET", "/config", summary="Configuration of a model", responses=openapi.CONFIG)
async def model_config(request: Request, model: str, version: str) -> Response:
    """Returns a model's configuration, in the form of Triton's."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelConfig,
        oip.ModelConfigRequest(name=found.facts.name, version=version),
    )
    return json_response(message_as_json(answer.config))


@_of_model("GET", "/stats", summary="Statistics of a model", responses=openapi.STATS)
async def statistics(request: Request, model: str, version: str) -> Response:
    """Returns counts and durations of a model."""
    found = find_model(request, model)
    answer = await call(
        request,
        found.backend,
        found.backend.inference.ModelStatistics,
        oip.ModelStatisticsRequest(name=found.facts.name, version=version),
    )
    return json_response(message_as_json(answer))


@_of_model(
    "POST",
    "/infer",
    summary="Run a model",
    description=openapi.INFER_DESCRIPTION,
    openapi_extra=openapi.INFER_REQUEST,
    responses=openapi.INFER,
)
async def infer(request: Request, model: str, version: str) -> Response:
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
    # As in KServe. The protocol says 4xx, which clients take for a fault of theirs.
    status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return json_response({**told, "ready": is_ready}, status)
