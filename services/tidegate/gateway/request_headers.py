"""The request headers that concern the gateway itself: read once, checked, and passed on.

Trace context, the request id and the headers that routes of the mesh match go on to the servers as
metadata of gRPC, which takes printable ASCII only.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import getrandbits
from typing import Final

from tidegate.gateway.errors import ApiError

__all__ = ["HeaderReader", "ReadHeaders"]

_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_ASCII: Final = re.compile(rb"[\x20-\x7e]*")
# The W3C's limits where there is one; gRPC's servers take about 8 KiB of metadata in all.
_MAX_TRACE_BYTES: Final = {b"traceparent": 128, b"tracestate": 512, b"baggage": 4096}
_MAX_FORWARDED_BYTES: Final = 4096
_API_KEYS: Final = (b"x-api-key", b"api-key")


@dataclass(slots=True)
class ReadHeaders:
    """What the headers of a request say.

    Attributes:
        request_id: The client's id of the request, or a new one.
        trace: Trace context and baggage, as pairs of metadata.
        forwarded: The headers that go on to the servers.
        authorization: The header ``authorization``; None without one.
        api_key: The header ``x-api-key`` or ``api-key``; None without one.
        error: What is wrong with them; None if nothing is.
    """

    request_id: str
    trace: tuple[tuple[str, str], ...] = ()
    forwarded: tuple[tuple[str, str], ...] = ()
    authorization: bytes | None = None
    api_key: bytes | None = None
    error: ApiError | None = None


class HeaderReader:
    """Reads headers.

    Args:
        forward: Names of the headers that go on to the servers, in lower case.
    """

    def __init__(self, forward: Iterable[str]) -> None:
        self._forwarded: Mapping[bytes, str] = {name.encode(): name for name in forward}
        self._known = frozenset(
            {b"x-request-id", *_MAX_TRACE_BYTES, *self._forwarded, *_API_KEYS, b"authorization"}
        )

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> ReadHeaders:
        """Reads the headers of a request, whose names are in lower case."""
        known = self._known
        found = [each for each in headers if each[0] in known]
        request_id = b""
        read = ReadHeaders("")
        for name, value in found:
            if name == b"x-request-id":
                request_id = request_id or value
            elif name == b"authorization":
                read.authorization = value
            elif name in _API_KEYS:
                read.api_key = value
            limit = _MAX_TRACE_BYTES.get(name)
            if limit and len(value) <= limit and _ASCII.fullmatch(value):
                read.trace = (*read.trace, (name.decode(), value.decode()))
            if name in self._forwarded:
                self._forward(read, name, value)
        if _REQUEST_ID.fullmatch(request_id):
            read.request_id = request_id.decode()
        else:
            read.request_id = f"{getrandbits(128):032x}"
        return read

    def _forward(self, read: ReadHeaders, name: bytes, value: bytes) -> None:
        text = self._forwarded[name]
        if len(value) > _MAX_FORWARDED_BYTES or not _ASCII.fullmatch(value):
            read.error = ApiError(
                400,
                f"the header {text} goes on to the servers, so it may have at most"
                f" {_MAX_FORWARDED_BYTES} bytes, all of them printable ASCII",
            )
            return
        read.forwarded = (*read.forwarded, (text, value.decode()))
