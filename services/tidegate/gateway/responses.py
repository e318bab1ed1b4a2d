"""Responses in the two forms of errors, and JSON that is already encoded."""

from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.errors import ApiError

__all__ = ["error_body", "error_response", "json_response", "open_inference_error", "openai_error"]


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Makes a response of a value that msgspec encodes; bytes count as encoded JSON."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(body, status, headers, media_type="application/json")


def openai_error(error: ApiError) -> dict[str, object]:
    """Writes an error as OpenAI does: always all four keys."""
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def open_inference_error(error: ApiError) -> dict[str, object]:
    """Writes an error as the Open Inference Protocol does: one text."""
    return {"error": error.message}


def error_body(path: str, error: ApiError) -> bytes:
    """Encodes an error in the form of the part of the API that the path names."""
    is_open_inference = path == "/v2" or path.startswith("/v2/")
    body = open_inference_error(error) if is_open_inference else openai_error(error)
    return msgspec.json.encode(body)


def error_response(request: Request, error: ApiError) -> Response:
    """Makes the response of an error, in the form of the part of the API that the path names."""
    body = error_body(request.scope["path"], error)
    return json_response(body, error.status, {**error.retry_headers, **error.headers})
