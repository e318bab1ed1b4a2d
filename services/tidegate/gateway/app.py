"""Puts the gateway's parts together: routes, middleware and the handlers of errors."""

from http import HTTPStatus
from importlib.metadata import version
from typing import Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway import pages
from tidegate.gateway.errors import ApiError, ErrorType, internal_error, shortened
from tidegate.gateway.images.routes import router as images_router
from tidegate.gateway.interruptions import ClientGoneError
from tidegate.gateway.open_inference.repository_routes import router as repository_router
from tidegate.gateway.open_inference.routes import router as open_inference_router
from tidegate.gateway.openai.router import router as openai_router
from tidegate.gateway.parts import Parts
from tidegate.gateway.responses import error_response

__all__ = ["create_app"]

_MAX_PATH: Final = 120


def create_app(parts: Parts) -> FastAPI:
    """Makes the ASGI application.

    Args:
        parts: What the handlers share.
    """
    app = FastAPI(
        title="Tidegate",
        version=version("tidegate"),
        summary="OpenAI's API, images and the Open Inference Protocol, in front of gRPC servers.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.parts = parts
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
    app.include_router(pages.router)
    app.include_router(openai_router)
    app.include_router(images_router)
    app.include_router(open_inference_router)
    app.include_router(repository_router)
    pages.describe(app)
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    return error_response(request, cast("ApiError", error))


async def _http_error(request: Request, raised: Exception) -> Response:
    error = cast("HTTPException", raised)
    path = shortened(request.scope["path"], _MAX_PATH)
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


async def _invalid(request: Request, raised: Exception) -> Response:
    """Tells the first problem that FastAPI found in a path or a query, never its own 422."""
    problem = cast("RequestValidationError", raised).errors()[0]
    param = ".".join(str(each) for each in problem["loc"][1:]) or None
    return error_response(request, ApiError.invalid(param, shortened(problem["msg"])))


async def _unexpected(request: Request, raised: Exception) -> Response:
    """Makes the response; Starlette raises the error again, and the middleware logs it."""
    del raised
    return error_response(request, internal_error())


async def _client_gone(request: Request, error: Exception) -> Response:
    """Makes the response that nobody reads; its status is for the metrics, as nginx has it."""
    del request, error
    return Response(status_code=499)
