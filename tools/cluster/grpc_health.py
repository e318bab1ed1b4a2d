"""One gRPC health check over a connected stream.

It writes the few HTTP/2 frames itself: the cluster's process starts other processes all the time,
and the threads of the gRPC library do not survive a fork.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

__all__ = ["health_status"]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_STREAM: Final = 1
_STATUSES: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
# The tag of the field `status` of `HealthCheckResponse`, and of `service` of the request.
_STATUS_TAG, _SERVICE_TAG = 0x08, 0x0A


async def health_status(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, service: str
) -> str:
    """Asks a server for the health of a service.

    Args:
        reader: The stream from the server.
        writer: The stream to it.
        authority: The address, as the server sees it.
        service: The service; empty for the server as a whole.

    Returns:
        The name of the status, such as `SERVING`, or words that say why there is none.
    """
    asked = bytes([_SERVICE_TAG, len(service)]) + service.encode() if service else b""
    writer.write(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, _STREAM, _headers(authority))
        + _frame(_DATA, _END_STREAM, _STREAM, b"\0" + struct.pack("!I", len(asked)) + asked)
    )
    body = b""
    try:
        while True:
            kind, flags, stream, content = await _read_frame(reader)
            if kind == _SETTINGS and not flags & _ACK:
                writer.write(_frame(_SETTINGS, _ACK, 0, b""))
            if stream != _STREAM:
                continue
            if kind == _DATA:
                body += content
            if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                return _status(body)
    except asyncio.IncompleteReadError:
        return "the server closed the connection"


def _status(body: bytes) -> str:
    if len(body) < 5:
        return "the call failed"
    message = body[5:]
    if not message:
        return _STATUSES[0]
    if len(message) == 2 and message[0] == _STATUS_TAG and message[1] < len(_STATUSES):
        return _STATUSES[message[1]]
    return f"unknown answer {message.hex()}"


def _headers(authority: str) -> bytes:
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "kube-probe/1.36"),
    )
    # HPACK's literal without indexing (RFC 7541, 6.2.2): the name and the value with their lengths.
    return b"".join(
        bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields
    )


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    length = struct.pack("!I", len(content))[1:]
    return length + bytes([kind, flags]) + struct.pack("!I", stream) + content


async def _read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    head = await reader.readexactly(9)
    length = int.from_bytes(head[:3])
    stream = int.from_bytes(head[5:]) & 0x7FFFFFFF
    return head[3], head[4], stream, await reader.readexactly(length)
