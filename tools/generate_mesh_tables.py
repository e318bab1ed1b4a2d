"""Writes the tables of docs/mesh-objects.md and docs/mesh-lint.md from declarations in the code.

The rest of these files is written by hand. A table stands between a comment with its name and a
comment that ends it.

Usage: python tools/generate_mesh_tables.py [--check]
"""

import datetime as dt
import difflib
import enum
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tidegate.istio.names import Kind
from tidegate.istio.objects import CLASSES
from tidegate.istio.reading.annotations import annotation_names
from tidegate.istio.reading.messages import annotations_of, camel_case, fields_of
from tidegate.istio.scalars import duration_text
from tidegate.istio.shapes import (
    GatewayName,
    HeaderName,
    HostName,
    Inside,
    Label,
    Message,
    Positive,
    Range,
    Regex,
    StringMatch,
    SubsetName,
)
from tidegate.mesh.compiler.unsupported import UNSUPPORTED_FIELDS, UNSUPPORTED_VALUES
from tidegate.mesh.lint.checking import ALL_KUBERNETES_RULES, ALL_RULES
from tidegate.mesh.lint.findings import Rule

DOCS = Path(__file__).parents[1] / "docs"
WORDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    dt.timedelta: "duration",
    StringMatch: "condition",
    Regex: "regular expression (RE2)",
    HostName: "host",
    GatewayName: "gateway",
    SubsetName: "name",
    HeaderName: "header",
    Label: "name",
}


def main() -> int:
    """Writes the tables; with ``--check`` it only reports whether they are up to date."""
    check = sys.argv[1:] == ["--check"]
    stale = False
    for name, tables in (("mesh-objects.md", object_tables()), ("mesh-lint.md", lint_tables())):
        path = DOCS / name
        before = path.read_text()
        after = before
        for table, lines in tables.items():
            after = filled(after, table, lines)
        if before == after:
            continue
        if not check:
            path.write_text(after)
            continue
        stale = True
        both = (before.splitlines(), after.splitlines())
        print("\n".join(difflib.unified_diff(*both, name, "generated", lineterm="")))
    if stale:
        print("run `python tools/generate_mesh_tables.py`")
    return int(stale)


def filled(text: str, table: str, lines: list[str]) -> str:
    """The text with a table between its two comments."""
    begin, end = f"<!-- table: {table} -->", "<!-- end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(f"the comment {begin} must be there once, with {end} after it")
    return pattern.sub(lambda _: "\n".join([begin, "", *lines, "", end]), text)


def object_tables() -> dict[str, list[str]]:
    """A table of fields for each kind, and one of annotations."""
    tables = {kind.value: list(kind_table(CLASSES[kind])) for kind in Kind}
    rows = ["| annotation | of | what it does |", "|---|---|---|"]
    for kind in Kind:
        annotations = annotations_of(CLASSES[kind])
        documentation = documented(annotations)
        for key, name in annotation_names(annotations).items():
            rows.append(f"| `{key}` | {kind.value} | {documentation[name]} |")
    tables["annotations"] = rows
    return tables


def kind_table(message: type[Message]) -> Iterator[str]:
    """The table of a kind's fields, then one of refused fields."""
    yield "| field | value | what it is |"
    yield "|---|---|---|"
    refused: list[str] = []
    for path, owner, name, shape, seen in walked(message, "", {}):
        if shape is None:
            reason, _, fix = UNSUPPORTED_FIELDS[owner][name].rpartition("; ")
            refused.append(f"| `{path}` | {reason} | {fix} |")
        else:
            required = " (required)" if shape.required else ""
            value = f"as `{seen}`" if seen else value_words(shape.type)
            yield f"| `{path}` | {value}{required} | {documented(owner)[shape.name]} |"
            values = {} if seen else UNSUPPORTED_VALUES.get(bare(shape.type)[0], {})
            for word, refusal in values.items():
                reason, _, fix = refusal.rpartition("; ")
                refused.append(f"| `{path}: {word}` | {reason} | {fix} |")
    if refused:
        yield from ("", "| refused | why | instead |", "|---|---|---|", *refused)


def walked(message: type[Message], path: str, expanded: dict[type, str]) -> Iterator[Any]:
    """Every field below a message.

    Yields:
        Its path, message, name, shape (None where it is refused), and the path at which the fields
        of its own message stand already.
    """
    for name, shape in fields_of(message).items():
        inner, marks = bare(shape.type)
        place = f"{path}{name}{marks}"
        yield place, message, name, shape, expanded.get(inner, "")
        if isinstance(inner, type) and issubclass(inner, Message) and inner not in expanded:
            expanded[inner] = place
            yield from walked(inner, f"{place}.", expanded)
    for owner in message.__mro__:
        for name in UNSUPPORTED_FIELDS.get(owner, ()):
            yield f"{path}{name}", owner, name, None, ""


def bare(hint: Any) -> tuple[Any, str]:
    """The type inside of lists, options and annotations, and marks for lists and fields."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        inner, marks = bare(args[0])
        wrapper = "".join(f".{each.field}" for each in args[1:] if isinstance(each, Inside))
        return inner, wrapper + marks
    if origin in (types.UnionType, typing.Union):
        return bare(next(one for one in args if one is not type(None)))
    if origin is tuple:
        inner, marks = bare(args[0])
        return inner, f"[]{marks}"
    if origin is not None:
        inner, marks = bare(args[1])
        return inner, f".*{marks}"
    return hint, ""


def value_words(hint: Any) -> str:
    """A type of values in words."""
    inner, _ = bare(hint)
    if isinstance(inner, type) and issubclass(inner, Message):
        return "message"
    if isinstance(inner, type) and issubclass(inner, enum.Enum):
        refused = UNSUPPORTED_VALUES.get(inner, {})
        return " or ".join(f"`{each.value}`" for each in inner if each.value not in refused)
    words = WORDS[inner]
    for marker in markers(hint):
        if isinstance(marker, Range):
            words += f" {marker.minimum:.0f} to {marker.maximum:.0f}"
        if isinstance(marker, Positive):
            words += f" of at least {duration_text(marker.minimum)}"
    return words


def markers(hint: Any) -> Iterator[Any]:
    """The annotations anywhere in a type."""
    if typing.get_origin(hint) is typing.Annotated:
        yield from hint.__metadata__
    for one in typing.get_args(hint):
        if typing.get_args(one):
            yield from markers(one)


def documented(owner: type) -> dict[str, str]:
    """The sentences in a docstring's ``Attributes``, by field."""
    documentation: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        section = (cls.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        for name, words in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE):
            sentence = " ".join(words.split()).replace("``", "`").replace("|", "\\|")
            documentation[name] = re.sub(
                r"(?<=`)\w+(?=`)", lambda found: camel_case(found[0]), sentence
            )
    return documentation


def lint_tables() -> dict[str, list[str]]:
    """The tables of rules: about Istio's traffic objects, and about objects of Kubernetes."""
    rows = ["| rule | severity | found where |", "|---|---|---|"]
    rows += [f"| `{each.name}` | {each.severity.value} | {each.summary} |" for each in ALL_RULES]
    kubernetes = ["| rule | severity | found where | why |", "|---|---|---|---|"]
    kubernetes += [
        f"| `{each.name}` | {severity_of(each)} | {each.summary} | {each.why} |"
        for each in ALL_KUBERNETES_RULES
    ]
    return {"rules": rows, "kubernetes-rules": kubernetes}


def severity_of(rule: Rule) -> str:
    """The severity of a rule, or both of them."""
    lesser = f" or {rule.lesser.value}" if rule.lesser is not None else ""
    return f"{rule.severity.value}{lesser}"


if __name__ == "__main__":
    sys.exit(main())
