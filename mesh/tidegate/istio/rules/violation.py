"""Violations of rules, and checks that several rules share."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tidegate.istio.scalars import is_label_name, is_label_value
from tidegate.istio.shapes import Message

__all__ = ["Violation", "at_most_one", "export_to", "labels", "twice"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A contradiction in a message.

    Attributes:
        path: The field, relative to the message: ``route[1].weight``; empty for the message itself.
        problem: The problem.
        fix: What to write instead.
    """

    path: str
    problem: str
    fix: str


def at_most_one(message: Message, *fields: tuple[str, str], least: int = 0) -> Iterator[Violation]:
    """Checks fields that exclude each other.

    Args:
        message: The message.
        *fields: The fields, by their names in Python and YAML.
        least: The number of fields that are required.
    """
    present = [yaml for name, yaml in fields if getattr(message, name) not in (None, ())]
    words = ", ".join(yaml for _, yaml in fields)
    if len(present) > 1:
        fix = f"keep one of {words}"
        yield Violation(present[1], f"cannot be combined with '{present[0]}'", fix)
    if len(present) < least:
        yield Violation("", f"has none of {words}", "add one")


def twice(items: Iterable[object], path: str, what: str) -> Iterator[Violation]:
    """Checks for duplicates.

    Args:
        items: The items.
        path: The path of an item, with a placeholder for its index.
        what: A word for an item.
    """
    seen: set[object] = set()
    for index, item in enumerate(items):
        if item in seen:
            yield Violation(path.format(index), f"{what} {item} is given twice", "keep one")
        seen.add(item)


def labels(found: Mapping[str, str], path: str) -> Iterator[Violation]:
    """Checks that Kubernetes accepts labels."""
    for name, value in found.items():
        place = f"{path}[{name}]" if "." in name or "/" in name else f"{path}.{name}"
        if not is_label_name(name):
            fix = "write it like version or example.com/tier"
            yield Violation(place, f"{name!r} is not a label name", fix)
        if not is_label_value(value):
            fix = "use letters, 0-9, -, _ and dots, at most 63"
            yield Violation(place, f"{value!r} is not a label value", fix)


def export_to(scopes: tuple[str, ...]) -> Iterator[Violation]:
    """Checks that a scope is all namespaces or the object's own."""
    if scopes not in (("*",), (".",), ()):
        yield Violation("exportTo", "names namespaces", "write ['*'] for all or ['.'] for its own")
