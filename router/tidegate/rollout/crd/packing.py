"""What only the controller reads back, as text of a status: exact, and small.

The engine's state has thousands of numbers, some of them infinite, which JSON lacks. So it is
MessagePack, compressed by LZMA, which finds the counts that several objectives and candidates
share, and written in Base64.
"""

import base64
import binascii
import lzma
from typing import Final, TypeVar

import msgspec

from tidegate.rollout.engine.samples import Sample
from tidegate.rollout.engine.status import RolloutStatus

__all__ = [
    "DamagedStateError",
    "EngineState",
    "pack_samples",
    "pack_state",
    "unpack_samples",
    "unpack_state",
]

_T = TypeVar("_T")

_FORMAT: Final = 1
_DICTIONARY: Final = (1 << 12, 1 << 18)
_MOST_BYTES: Final = 16 << 20
_MEMORY_BYTES: Final = 64 << 20


class DamagedStateError(ValueError):
    """A text is not what the controller wrote, or another version of it wrote the text."""


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller reads back.

    Attributes:
        rollout: The rollout that runs, as JSON. It may differ from the object's spec.
        status: Its status.
        successor: The rollout that takes its place, as JSON; empty if none does.
        format: The version of this form.
    """

    rollout: str
    status: RolloutStatus
    successor: str = ""
    format: int = _FORMAT


class _Format(msgspec.Struct, frozen=True):
    format: int


def pack_state(state: EngineState) -> str:
    """Returns a state as text."""
    return _packed(msgspec.msgpack.encode(state))


def unpack_state(text: str) -> EngineState:
    """Returns the state of a text.

    Raises:
        DamagedStateError: The text holds none.
    """
    found = _unpacked(text)
    if _decoded(found, _Format).format != _FORMAT:
        raise DamagedStateError("another version of tidegate wrote it")
    return _decoded(found, EngineState)


def pack_samples(samples: tuple[Sample, ...]) -> str:
    """Returns samples as text."""
    return _packed(msgspec.msgpack.encode(samples))


def unpack_samples(text: str) -> tuple[Sample, ...]:
    """Returns the samples of a text.

    Raises:
        DamagedStateError: The text holds none.
    """
    return _decoded(_unpacked(text), tuple[Sample, ...])


def _packed(content: bytes) -> str:
    # A dictionary that is larger than the content takes time for nothing.
    least, most = _DICTIONARY
    size = min(max(least, 1 << len(content).bit_length()), most)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": size}]
    found = lzma.compress(content, check=lzma.CHECK_CRC32, filters=filters)
    return base64.b64encode(found).decode()


def _unpacked(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
        # Whoever may write the status must not fill the controller's memory.
        reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY_BYTES)
        found = reader.decompress(content, max_length=_MOST_BYTES)
    except (binascii.Error, ValueError, lzma.LZMAError) as error:
        raise DamagedStateError(f"it is damaged: {error}") from error
    if not reader.eof:
        raise DamagedStateError("it is damaged: its end is missing")
    return found


def _decoded(content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedStateError(f"it is damaged: {error}") from error
