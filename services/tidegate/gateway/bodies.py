"""Reads request bodies: never more than the limit, and never for longer than the limit."""

import asyncio
from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect, Request

from tidegate.gateway.errors import ApiError
from tidegate.gateway.interruptions import ClientGoneError

__all__ = ["read_body"]

_MAX_DIGITS: Final = 20


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Reads a body.

    Args:
        request: The request.
        max_bytes: Most bytes.
        timeout_s: How long the client may take, in seconds.

    Raises:
        ApiError: It is too large, or took too long.
        ClientGoneError: The client left before its end.
    """
    length = request.headers.get("content-length", "0")
    # The connection has checked it; a number with more digits than Python reads is too large too.
    if len(length) > _MAX_DIGITS or int(length) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
    except TimeoutError as error:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body did not come within {timeout_s:g} s",
            code="request_timeout",
            headers={"connection": "close"},
        ) from error
    except ClientDisconnect as error:
        raise ClientGoneError("the client left before the end of its request") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {max_bytes} bytes; send less, or raise max_body_bytes",
        code="body_too_large",
        # What is left of the body is not read, so the connection cannot be used again.
        headers={"connection": "close"},
    )
