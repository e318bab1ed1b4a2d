"""Reads the bodies of requests below ``/v2``: decompressed, and with the length of their document.

Triton's clients can compress what they send. The limit on the body counts the decompressed bytes.
"""

import asyncio
import zlib
from http import HTTPStatus
from typing import Final

from starlette.requests import Request

from tidegate.gateway.bodies import read_body
from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.parts import parts_of

__all__ = ["LENGTH_HEADER", "header_length_of", "read_infer_body"]

LENGTH_HEADER: Final = "Inference-Header-Content-Length"
"""Bytes of the JSON document, if the bytes of tensors follow it."""

# Of zlib: whether a stream has its header or that of gzip.
_ENCODINGS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_MOST_DIGITS: Final = 12
_SHOWN: Final = 40


def header_length_of(request: Request) -> int | None:
    """Reads the length of the JSON document; None if it is the whole body.

    Raises:
        ApiError: The header is no number, or is there twice.
    """
    given = request.headers.getlist(LENGTH_HEADER)
    if not given:
        return None
    text, *others = given
    if others or not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ApiError.invalid(
            LENGTH_HEADER,
            f"{LENGTH_HEADER}: is {shortened(', '.join(given), _SHOWN)!r}; it must be one number,"
            " the bytes of the JSON document",
        )
    return int(text)


async def read_infer_body(request: Request) -> bytes:
    """Reads a body, and decompresses it.

    Raises:
        ApiError: It is too large, also once it is decompressed, or its encoding is unknown.
        ClientGoneError: The client left before its end.
    """
    settings = parts_of(request).settings
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", *_ENCODINGS}:
        raise ApiError.invalid(
            "Content-Encoding",
            f"Content-Encoding: is {shortened(encoding, _SHOWN)!r}; it may be gzip, deflate or"
            " identity",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    body = await read_body(request, settings.max_body_bytes, settings.body_timeout_s)
    if encoding == "identity":
        return body
    # zlib lets other threads run meanwhile.
    return await asyncio.to_thread(_decompressed, body, encoding, settings.max_body_bytes)


def _decompressed(body: bytes, encoding: str, most: int) -> bytes:
    decompressor = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        content = decompressor.decompress(body, most + 1)
    except zlib.error as error:
        raise _damaged(encoding, str(error)) from None
    if len(content) > most:
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body decompresses to more than {most} bytes; send less, or raise max_body_bytes",
            code="body_too_large",
        )
    if not decompressor.eof or decompressor.unused_data:
        raise _damaged(encoding, "it is cut short, or more follows it")
    return content


def _damaged(encoding: str, problem: str) -> ApiError:
    return ApiError.invalid(None, f"the body is no valid {encoding}: {problem}")
