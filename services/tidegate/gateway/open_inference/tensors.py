"""Tensors in JSON and in bytes.

The servers take and give raw tensors: elements row by row, little-endian, with four bytes of length
before each element of BYTES. So tensors in JSON are packed here, and unpacked for clients that read
JSON. A list may be flat or nested as the shape says; both mean the same.
"""

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec

from tidegate.gateway.errors import ApiError, ErrorType, shortened
from tidegate.gateway.json_documents import read_json

__all__ = ["DATATYPES", "Datatype", "datatype_of", "pack", "unpack"]

_LENGTH_BYTES: Final = 4
_WHITESPACE: Final = b" \t\n\r"
_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class Datatype:
    """A type of elements.

    Attributes:
        name: Its name in the protocol.
        size: Bytes of an element; 0 for BYTES, whose elements vary.
        code: Its letter in `struct`; empty if JSON has no form for it.
        kind: The type of its elements in JSON.
    """

    name: str
    size: int
    code: str
    kind: type


DATATYPES: Final = {
    each.name: each
    for each in (
        Datatype("BOOL", 1, "?", bool),
        Datatype("UINT8", 1, "B", int),
        Datatype("UINT16", 2, "H", int),
        Datatype("UINT32", 4, "I", int),
        Datatype("UINT64", 8, "Q", int),
        Datatype("INT8", 1, "b", int),
        Datatype("INT16", 2, "h", int),
        Datatype("INT32", 4, "i", int),
        Datatype("INT64", 8, "q", int),
        # Triton's and KServe's clients and servers send 16-bit floats as bytes only.
        Datatype("FP16", 2, "", float),
        Datatype("BF16", 2, "", float),
        Datatype("FP32", 4, "f", float),
        Datatype("FP64", 8, "d", float),
        Datatype("BYTES", 0, "", str),
    )
}
"""The types of the protocol, by name."""


def datatype_of(name: str, at: str) -> Datatype:
    """Finds a type.

    Args:
        name: Its name.
        at: The path of the tensor, for errors.

    Raises:
        ApiError: There is none of that name.
    """
    if found := DATATYPES.get(name):
        return found
    known = ", ".join(DATATYPES)
    raise ApiError.invalid(
        f"{at}.datatype", f"{at}.datatype: is {shortened(name, _SHOWN)!r}; there is: {known}"
    )


def pack(data: "msgspec.Raw", datatype: Datatype, shape: Sequence[int], at: str) -> bytes:
    """Packs the elements of a tensor that came as JSON.

    Args:
        data: The list, as JSON.
        datatype: The type of its elements.
        shape: The shape of the tensor.
        at: The path of the tensor, for errors.

    Raises:
        ApiError: An element has another type or does not fit into it, or the list does not have the
            shape.
    """
    if datatype.size and not datatype.code:
        raise ApiError.invalid(
            f"{at}.data",
            f"{at}.data: JSON has no form for {datatype.name}; send the tensor as binary data",
        )
    elements = _elements(data, datatype, shape, at)
    count = math.prod(shape)
    if len(elements) != count:
        raise ApiError.invalid(
            f"{at}.data",
            f"{at}.data: has {len(elements)} elements; the shape {_shown(shape)} needs {count}",
        )
    if not datatype.size:
        return b"".join(
            part
            for each in elements
            for encoded in (each.encode(),)
            for part in (len(encoded).to_bytes(_LENGTH_BYTES, "little"), encoded)
        )
    try:
        return struct.pack(f"<{count}{datatype.code}", *elements)
    except (struct.error, OverflowError):
        at_fault, value = next(
            (number, each) for number, each in enumerate(elements) if not _fits(each, datatype)
        )
        raise ApiError.invalid(
            f"{at}.data",
            f"{at}.data: element {at_fault} is {shortened(repr(value), _SHOWN)}, which does not"
            f" fit into {datatype.name}",
        ) from None


def unpack(raw: bytes, datatype: str, name: str) -> list[Any]:
    """Unpacks the elements of an output, for JSON.

    Args:
        raw: The bytes of the tensor.
        datatype: The type of its elements.
        name: The name of the output, for errors.

    Raises:
        ApiError: JSON has no form for them.
    """
    known = DATATYPES[datatype]
    if not known.size:
        try:
            return [each.decode() for each in _split(raw)]
        except UnicodeDecodeError:
            raise _binary_only(name, "has elements that are no UTF-8 text") from None
    if not known.code:
        raise _binary_only(name, f"is {datatype}, for which JSON has no form")
    values = list(struct.unpack(f"<{len(raw) // known.size}{known.code}", raw))
    if known.kind is float and not all(map(math.isfinite, values)):
        raise _binary_only(name, "has values that are not finite, for which JSON has no form")
    return values


def _binary_only(name: str, problem: str) -> ApiError:
    return ApiError(
        400,
        f"the output {name!r} {problem}; ask for it as binary data, with"
        " parameters.binary_data_output or the output's own binary_data",
        ErrorType.INVALID_REQUEST,
        "binary_only",
    )


def _split(raw: bytes) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(raw[at:start], "little")
        elements.append(raw[start:at])
    return elements


def _elements(
    data: "msgspec.Raw", datatype: Datatype, shape: Sequence[int], at: str
) -> Sequence[Any]:
    """Reads a list, flat or nested, as a flat one."""
    document = memoryview(data)
    depth = _depth(document)
    if depth not in {1, len(shape)}:
        raise ApiError.invalid(
            f"{at}.data",
            f"{at}.data: is a list nested {depth} deep; send a flat list, or one nested"
            f" {len(shape)} deep as the shape {_shown(shape)} says",
        )
    elements: Sequence[Any] = read_json(document, _decoder(datatype.kind, depth), at=f"{at}.data")
    for size in shape[1:] if depth > 1 else ():
        if any(len(each) != size for each in elements):
            raise ApiError.invalid(
                f"{at}.data", f"{at}.data: is not nested as the shape {_shown(shape)} says"
            )
        elements = list(itertools.chain.from_iterable(elements))
    return elements


def _depth(document: memoryview) -> int:
    depth = 0
    for each in document:
        if each == ord("["):
            depth += 1
        elif each not in _WHITESPACE:
            break
    return depth


@lru_cache(maxsize=64)
def _decoder(kind: type, depth: int) -> "msgspec.json.Decoder[Any]":
    form: Any = kind
    for _ in range(depth):
        form = list[form]
    return msgspec.json.Decoder(form)


def _fits(value: Any, datatype: Datatype) -> bool:
    try:
        struct.pack(f"<{datatype.code}", value)
    except (struct.error, OverflowError):
        return False
    return True


def _shown(shape: Sequence[int]) -> str:
    return shortened(str(list(shape)), _SHOWN)
