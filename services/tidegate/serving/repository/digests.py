"""Verifies files of models: their length, their SHA-256, and that an ONNX file is complete.

Model files are hundreds of megabytes, so they are read in pieces and never held in memory. An ONNX
file without a recorded digest can still be checked for truncation: a protobuf message is a sequence
of fields that each state their length, so a walk over the outermost fields must end exactly at the
end of the file. The walk reads a few bytes of each field and skips the weights.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO

from tidegate.serving.repository.errors import CorruptFileError
from tidegate.serving.repository.metadata import FileDigest

__all__ = ["check_digest", "check_onnx_is_whole", "digest_of"]

_REBUILD = "restore it, or build the model again"


def digest_of(path: Path) -> FileDigest:
    """Computes the digest of a file, which it reads in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256=sha256, size_bytes=file.tell())


def check_digest(path: Path, expected: FileDigest, *, read_content: bool = True) -> None:
    """Checks a file against its recorded digest.

    Args:
        path: The file.
        expected: The recorded digest.
        read_content: Whether to verify its SHA-256; its length is always compared.

    Raises:
        CorruptFileError: The file is missing, or has another length or content.
    """
    if not path.is_file():
        raise CorruptFileError(path, f"is missing; {_REBUILD}")
    size = path.stat().st_size
    if size != expected.size_bytes:
        raise CorruptFileError(
            path, f"has {size} bytes where {expected.size_bytes} were recorded; {_REBUILD}"
        )
    if read_content and (found := digest_of(path).sha256) != expected.sha256:
        raise CorruptFileError(
            path, f"has SHA-256 {found} where {expected.sha256} was recorded; {_REBUILD}"
        )


def check_onnx_is_whole(path: Path) -> None:
    """Checks that a file is a complete sequence of protobuf fields, as an ONNX model is.

    Raises:
        CorruptFileError: The file is missing, empty, cut short, or not protobuf.
    """
    if not path.is_file():
        raise CorruptFileError(path, f"is missing; {_REBUILD}")
    size = path.stat().st_size
    if size == 0:
        raise CorruptFileError(path, f"is empty; {_REBUILD}")
    with path.open("rb") as file:
        while file.tell() < size:
            start = file.tell()
            end = _end_of_field(file)
            if end is None or end > size:
                raise CorruptFileError(
                    path, f"is cut short or is not ONNX (at byte {start} of {size}); {_REBUILD}"
                )
            file.seek(end)


def _end_of_field(file: BinaryIO) -> int | None:
    """Returns the end of the field that starts here, or ``None`` if no field starts here."""
    tag = _varint(file)
    if not tag or tag >> 3 == 0:
        return None
    match tag & 7:
        case 0:
            return file.tell() if _varint(file) is not None else None
        case 1:
            return file.tell() + 8
        case 2:
            length = _varint(file)
            return None if length is None else file.tell() + length
        case 5:
            return file.tell() + 4
        case _:
            return None


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for position in range(10):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << (7 * position)
        if byte[0] < 0x80:
            return value
    return None
