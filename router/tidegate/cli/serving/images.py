"""What ``tidegate classify`` is given: files, folders of them, standard input, or nothing."""

import importlib.resources
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NamedImage", "built_in_image", "named_images"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
STDIN = "-"


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image and what to call it in the output.

    Attributes:
        name: its path, or ``-``.
        content: its bytes, or its path to be read when its turn comes.
    """

    name: str
    content: bytes | Path


def named_images(paths: Iterable[str]) -> Iterator[NamedImage]:
    """The images that the arguments mean, folders searched to their depth, in a stable order.

    A path that is not there is passed on: reading it fails in its turn, and not before the others.
    """
    for path in paths:
        if path == STDIN:
            yield NamedImage(STDIN, sys.stdin.buffer.read())
            continue
        place = Path(path)
        if not place.is_dir():
            yield NamedImage(path, place)
            continue
        for file in sorted(place.rglob("*")):
            if file.suffix.lower() in _SUFFIXES and file.is_file():
                yield NamedImage(str(file), file)


def built_in_image() -> NamedImage:
    """A photograph to try a server with: the cat Chelsea, by Stéfan van der Walt (CC0)."""
    file = importlib.resources.files("tidegate.cli.serving") / "cat.jpg"
    return NamedImage("a cat", file.read_bytes())
