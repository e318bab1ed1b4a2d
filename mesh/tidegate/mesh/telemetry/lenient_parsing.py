"""Protobuf messages whose strings may be none.

A string of a message must be UTF-8, or the whole message is refused. Envoy replaces what is not in
most of what it logs, but not in all: one request with the byte FF in its ``x-request-id`` makes an
access log message that no parser takes (seen with 1.40), together with the entries of everyone
else in it, and breaks the stream. Here such strings are mended first.
"""

from typing import Final, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

__all__ = ["parse"]

_Message = TypeVar("_Message", bound=Message)

# Protobuf's own bound for what is nested.
_MAX_DEPTH: Final = 100


def parse(kind: type[_Message], data: bytes) -> _Message:
    """Parses a message, with U+FFFD in its strings where a byte is not UTF-8.

    Args:
        kind: type of the message.
        data: its bytes.

    Raises:
        DecodeError: it is no message, whatever its strings.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        return kind.FromString(_mended(data, cast("Descriptor", kind.DESCRIPTOR), 0))


def _mended(data: bytes, descriptor: Descriptor, depth: int) -> bytes:
    if depth > _MAX_DEPTH:
        raise DecodeError("too deeply nested")
    mended = bytearray()
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        # The wire types: https://protobuf.dev/programming-guides/encoding/#structure
        match tag & 7:
            case 2:
                length, position = _varint(data, position)
                content = _taken(data, position, length)
                position += length
                content = _mended_field(content, descriptor.fields_by_number.get(tag >> 3), depth)
                mended += _as_varint(tag) + _as_varint(len(content)) + content
                continue
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case wire_type:
                raise DecodeError(f"wire type {wire_type}")
        mended += _taken(data, start, position - start)
    return bytes(mended)


def _mended_field(content: bytes, field: FieldDescriptor | None, depth: int) -> bytes:
    if field is None:
        return content
    if field.message_type is not None:
        return _mended(content, field.message_type, depth + 1)
    if field.type == FieldDescriptor.TYPE_STRING:
        return content.decode(errors="replace").encode()
    return content


def _taken(data: bytes, position: int, length: int) -> bytes:
    if position + length > len(data):
        raise DecodeError("cut short")
    return data[position : position + length]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = _taken(data, position, 1)[0]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("a number without end")


def _as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
