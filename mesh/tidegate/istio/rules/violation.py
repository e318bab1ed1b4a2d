"""How a rule says what contradicts itself, and what rules of several kinds share."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tidegate.istio.scalars import is_label_name, is_label_value
from tidegate.istio.shapes import Message

__all__ = ["Violation", "at_most_one", "export_to", "labels", "on_one_line", "twice"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A contradiction.

    Attributes:
        path: the field, from the message on: ``route[1].weight``; empty for the message itself.
        problem: what is wrong.
        fix: what to write instead.
    """

    path: str
    problem: str
    fix: str


def at_most_one(message: Message, *fields: tuple[str, str], least: int = 0) -> Iterator[Violation]:
    """Fields that exclude each other, by their names in Python and YAML."""
    present = [yaml for name, yaml in fields if getattr(message, name) not in (None, ())]
    words = ", ".join(yaml for _, yaml in fields)
    if len(present) > 1:
        fix = f"keep one of {words}"
        yield Violation(present[1], f"cannot stand beside '{present[0]}'", fix)
    if len(present) < least:
        yield Violation("", f"has none of {words}", "add one")


def twice(items: Iterable[object], path: str, what: str) -> Iterator[Violation]:
    """Items that come more than once; ``path`` has a place for their index."""
    seen: set[object] = set()
    for index, item in enumerate(items):
        if item in seen:
            yield Violation(path.format(index), f"{what} {item} stands twice", "keep one")
        seen.add(item)


def labels(found: Mapping[str, str], path: str) -> Iterator[Violation]:
    """Labels that Kubernetes would not take."""
    for name, value in found.items():
        place = f"{path}[{name}]" if "." in name or "/" in name else f"{path}.{name}"
        if not is_label_name(name):
            fix = "write it like version or example.com/tier"
            yield Violation(place, f"{name!r} is no name of a label", fix)
        if not is_label_value(value):
            fix = "use letters, 0-9, -, _ and dots, at most 63"
            yield Violation(place, f"{value!r} is no value of a label", fix)


def on_one_line(*texts: tuple[str, str | None]) -> Iterator[Violation]:
    """Texts, by their paths, that Envoy rejects for a line break or a zero byte."""
    for path, text in texts:
        if text is not None and not {"\0", "\r", "\n"}.isdisjoint(text):
            yield Violation(
                path, "has a line break or a zero byte, which Envoy rejects", "remove it"
            )


def export_to(scopes: tuple[str, ...]) -> Iterator[Violation]:
    """Scopes that are neither all namespaces nor its own."""
    if scopes not in (("*",), (".",), ()):
        yield Violation("exportTo", "names namespaces", "write ['*'] for all or ['.'] for its own")
