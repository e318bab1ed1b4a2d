"""How a rule says what contradicts itself, and what rules of several kinds share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tidegate.mesh.istio.shapes import Message

__all__ = ["Complaint", "at_most_one", "export_to", "twice"]


@dataclass(frozen=True, slots=True)
class Complaint:
    """A contradiction.

    Attributes:
        path: the field, from the message on: ``route[1].weight``; empty for the message itself.
        problem: what is wrong.
        fix: what to write instead.
    """

    path: str
    problem: str
    fix: str


def at_most_one(message: Message, *fields: tuple[str, str], least: int = 0) -> Iterator[Complaint]:
    """Fields that exclude each other, by their names in Python and YAML."""
    present = [yaml for name, yaml in fields if getattr(message, name) not in (None, (), False)]
    words = ", ".join(yaml for _, yaml in fields)
    if len(present) > 1:
        fix = f"keep one of {words}"
        yield Complaint(present[1], f"cannot stand beside '{present[0]}'", fix)
    if len(present) < least:
        yield Complaint("", f"has none of {words}", "add one")


def twice(items: Iterable[object], path: str, what: str) -> Iterator[Complaint]:
    """Items that come more than once; ``path`` has a place for their index."""
    seen: set[object] = set()
    for index, item in enumerate(items):
        if item in seen:
            yield Complaint(path.format(index), f"{what} {item} stands twice", "keep one")
        seen.add(item)


def export_to(scopes: tuple[str, ...]) -> Iterator[Complaint]:
    """Scopes that are neither all namespaces nor its own."""
    if scopes not in (("*",), (".",), ()):
        yield Complaint("exportTo", "names namespaces", "write ['*'] for all or ['.'] for its own")
