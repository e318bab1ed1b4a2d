"""What tells of the gateway itself: probes, metrics, and the description of its API."""

import asyncio
from functools import cache
from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tidegate.gateway.parts import parts_of

__all__ = ["describe", "router"]

router = APIRouter(tags=["gateway"])

_DOCS: Final = "docs.html"
# The page runs its own script and asks its own server; a browser lets it do nothing else.
_DOCS_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TEXT: Final = "text/plain; charset=utf-8"


@router.get(
    "/healthz",
    response_class=PlainTextResponse,
    summary="Tell whether the gateway's event loop runs",
)
async def healthz() -> Response:
    """Answers 200 whenever it answers."""
    return Response("OK\n", media_type=_TEXT)


@router.get(
    "/readyz",
    response_class=PlainTextResponse,
    summary="Tell whether the gateway takes requests",
    responses={503: {"description": "A server has not told its models yet, or a drain has begun."}},
)
async def readyz(request: Request) -> Response:
    """Answers 200 once each server behind has told its models, until a drain begins."""
    if parts_of(request).is_ready:
        return Response("OK\n", media_type=_TEXT)
    return Response("Service Unavailable\n", 503, media_type=_TEXT)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    summary="Render the metrics for Prometheus",
)
async def metrics() -> Response:
    """Renders Prometheus' text format, on a thread: it may be thousands of lines."""
    page = await asyncio.to_thread(generate_latest, REGISTRY)
    return Response(page, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Shows the description of the API; the page needs no other host."""
    headers = {"content-security-policy": _DOCS_POLICY, "x-content-type-options": "nosniff"}
    return Response(_docs_page(), headers=headers, media_type="text/html")


@cache
def _docs_page() -> bytes:
    return files("tidegate.gateway").joinpath(_DOCS).read_bytes()


def describe(app: FastAPI) -> None:
    """Makes the application's OpenAPI document that of the gateway: errors, keys, no 422."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(original())
        return original()

    app.openapi = openapi  # type: ignore[method-assign]


_OPEN: Final = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")


def _complete(document: dict[str, Any]) -> None:
    """Adds to a document what is true of every operation."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):
        schemas.pop(generated, None)
    schemas["Error"] = _ERROR
    schemas["OpenInferenceError"] = _OPEN_INFERENCE_ERROR
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        form = "OpenInferenceError" if f"{path}/".startswith("/v2/") else "Error"
        for operation in operations.values():
            responses = operation.setdefault("responses", {})
            responses.pop("422", None)
            if path in _OPEN:
                continue
            operation["security"] = [{"key": []}, {}]
            responses.setdefault("4XX", _response("The request is wrong; see `error`.", form))
            responses.setdefault("5XX", _response("No model can answer now; see `error`.", form))
    _make_bounds_whole(document)


_BOUNDS: Final = ("minimum", "maximum")
_LARGEST_INT64: Final = 2**63 - 1


def _make_bounds_whole(node: Any) -> None:
    """Writes the bounds of integers as integers.

    FastAPI makes floating-point numbers of them, and the one next to 2**63 - 1 is 2**63.
    """
    if isinstance(node, list):
        for each in node:
            _make_bounds_whole(each)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in _BOUNDS and isinstance(value, float) and node.get("type") == "integer":
                node[name] = min(int(value), _LARGEST_INT64)
            else:
                _make_bounds_whole(value)


def _response(description: str, form: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{form}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_TEXT_OR_NULL: Final = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong and what to do."},
                "type": {"type": "string", "description": "The kind of error."},
                "param": {**_TEXT_OR_NULL, "description": "The field that is wrong."},
                "code": {**_TEXT_OR_NULL, "description": "A word for programs."},
            },
        }
    },
}
_OPEN_INFERENCE_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What is wrong and what to do."}},
}
