"""What a connection itself refuses: requests beyond its limits, and what is no HTTP/1.1.

No application sees these requests, so their errors are encoded here, in the form of the API, with
the headers that every response has. Each closes its connection.
"""

import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tidegate.gateway.errors import ApiError, ErrorType
from tidegate.gateway.responses import error_body

__all__ = [
    "encoded_refusal",
    "header_block_too_large",
    "header_block_too_late",
    "not_http",
    "too_many_connections",
]

_BUSY_RETRY_S: Final = 1.0


def too_many_connections(limit: int) -> ApiError:
    """Makes the error of a connection beyond `max_connections`."""
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"the gateway has {limit} connections, which is its limit (max_connections); try again",
        ErrorType.SERVER,
        "too_many_connections",
        retry_after_s=_BUSY_RETRY_S,
    )


def header_block_too_large(limit_bytes: int) -> ApiError:
    """Makes the error of a header block beyond `max_header_bytes`."""
    return ApiError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        f"the header block has more than {limit_bytes} bytes",
        code="headers_too_large",
    )


def header_block_too_late(limit_s: float) -> ApiError:
    """Makes the error of a header block that took longer than `header_timeout_s`."""
    return ApiError(
        HTTPStatus.REQUEST_TIMEOUT,
        f"the header block did not come within {limit_s:g} s",
        code="request_timeout",
    )


def not_http(error: httptools.HttpParserError) -> ApiError:
    """Makes the error of bytes that are no HTTP/1.1."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return ApiError(
            HTTPStatus.NOT_IMPLEMENTED,
            "the request does not begin with a method that the gateway knows; speak HTTP/1.1",
            code="unknown_method",
        )
    if "PRI" in str(error):
        return ApiError(
            HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
            "the gateway does not speak HTTP/2; use HTTP/1.1, or a proxy in front",
        )
    problem = "its target is not a URL" if error.__context__ else str(error)
    return ApiError(HTTPStatus.BAD_REQUEST, f"this is no HTTP/1.1 request: {problem}")


def encoded_refusal(
    error: ApiError, target: str, default_headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """Encodes the response that tells an error and closes the connection.

    Args:
        error: The error.
        target: What the request asks for, as far as it is known; the form of the error is that of
            this part of the API.
        default_headers: Headers of every response.
    """
    body = error_body(target, error)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": uuid.uuid4().hex,
        "connection": "close",
        **error.retry_headers,
    }
    encoded = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    dated = [name + b": " + value + b"\r\n" for name, value in default_headers]
    return b"".join((STATUS_LINE[error.status], *dated, *encoded, b"\r\n", body))
