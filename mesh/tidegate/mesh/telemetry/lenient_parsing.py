"""Parses Protobuf messages whose strings are not valid UTF-8.

Protobuf rejects a whole message if one of its strings is not UTF-8. Envoy replaces invalid bytes in
most of its log fields, but not in all. One request with the byte FF in its ``x-request-id`` makes
an access log message that no parser accepts (seen with 1.40). All other entries in that message are
lost too, and the stream breaks. This module repairs such strings before it parses.
"""

from typing import Final, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

__all__ = ["parse"]

_Message = TypeVar("_Message", bound=Message)

# Protobuf's own limit for nested messages.
_MAX_DEPTH: Final = 100


def parse(kind: type[_Message], data: bytes) -> _Message:
    """Parses a message and replaces invalid bytes in its strings with U+FFFD.

    Args:
        kind: The message type.
        data: The serialized message.

    Raises:
        DecodeError: The data is not a message of that type, even with repaired strings.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        return kind.FromString(_repaired(data, cast("Descriptor", kind.DESCRIPTOR), 0))


def _repaired(data: bytes, descriptor: Descriptor, depth: int) -> bytes:
    if depth > _MAX_DEPTH:
        raise DecodeError("too deeply nested")
    repaired = bytearray()
    position = 0
    while position < len(data):
        start = position
        tag, position = _read_varint(data, position)
        # The wire types: https://protobuf.dev/programming-guides/encoding/#structure
        match tag & 7:
            case 2:
                length, position = _read_varint(data, position)
                content = _read_bytes(data, position, length)
                position += length
                content = _repaired_field(content, descriptor.fields_by_number.get(tag >> 3), depth)
                repaired += _encode_varint(tag) + _encode_varint(len(content)) + content
                continue
            case 0:
                _, position = _read_varint(data, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case wire_type:
                raise DecodeError(f"unknown wire type {wire_type}")
        repaired += _read_bytes(data, start, position - start)
    return bytes(repaired)


def _repaired_field(content: bytes, field: FieldDescriptor | None, depth: int) -> bytes:
    if field is None:
        return content
    if field.message_type is not None:
        return _repaired(content, field.message_type, depth + 1)
    if field.type == FieldDescriptor.TYPE_STRING:
        return content.decode(errors="replace").encode()
    return content


def _read_bytes(data: bytes, position: int, length: int) -> bytes:
    if position + length > len(data):
        raise DecodeError("truncated message")
    return data[position : position + length]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = _read_bytes(data, position, 1)[0]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("unterminated varint")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
