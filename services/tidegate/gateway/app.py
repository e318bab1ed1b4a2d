"""Puts the gateway's parts together: routes, middleware and the handlers of errors."""

from http import HTTPStatus
from typing import cast

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.errors import ApiError, ErrorType
from tidegate.gateway.images.routes import router as images_router
from tidegate.gateway.interruptions import ClientGoneError
from tidegate.gateway.open_inference.routes import router as open_inference_router
from tidegate.gateway.openai.router import router as openai_router
from tidegate.gateway.parts import Parts
from tidegate.gateway.responses import error_response

__all__ = ["create_app"]


def create_app(parts: Parts) -> FastAPI:
    """Makes the ASGI application.

    Args:
        parts: What the handlers share.
    """
    app = FastAPI(title="Tidegate", docs_url=None, redoc_url=None)
    app.state.parts = parts
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.include_router(openai_router)
    app.include_router(images_router)
    app.include_router(open_inference_router)
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    return error_response(request, cast("ApiError", error))


async def _http_error(request: Request, raised: Exception) -> Response:
    error = cast("HTTPException", raised)
    path = request.url.path
    told = {
        HTTPStatus.NOT_FOUND: ApiError(
            404, f"no such path: {path}; /docs lists them", ErrorType.NOT_FOUND, "unknown_url"
        ),
        HTTPStatus.METHOD_NOT_ALLOWED: ApiError(
            405,
            f"{path} does not take {request.method}",
            code="method_not_supported",
            headers=dict(error.headers or {}),
        ),
    }.get(HTTPStatus(error.status_code))
    return error_response(request, told or ApiError(error.status_code, str(error.detail)))


async def _client_gone(request: Request, error: Exception) -> Response:
    """Makes the response that nobody reads; its status is for the metrics, as nginx has it."""
    del request, error
    return Response(status_code=499)
