"""YAML as nodes with line numbers.

Every problem names its line, and every edit changes an object at its place in the text. Plain
values have neither, so the parser works on nodes. The composer is libyaml's, since a mesh of a
thousand hosts has tens of thousands of lines.

A scalar without quotes has the type that Kubernetes' parser (sigs.k8s.io/yaml) gives it, so that a
file is the same object here and on a cluster: ``y`` and ``off`` are booleans, ``1e3``, ``0o10`` and
``08`` are numbers, ``12:30`` and a date are texts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

__all__ = [
    "DuplicateKey",
    "YamlSyntaxError",
    "compose",
    "content_end",
    "entries",
    "find",
    "find_key",
    "is_null",
    "kind_of",
    "line_of",
    "node_of",
    "number_of",
    "truth_of",
    "value_of",
]

_TAG = "tag:yaml.org,2002:"
_TRUE = ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
_FALSE = ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
_INTEGER = r"[-+]?(?:0[xX][0-9a-fA-F_]*[0-9a-fA-F]|0[bB][01_]*[01]|0[oO][0-7_]*[0-7]|[0-9][0-9_]*)"
_FLOAT = (
    r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9][0-9_]*)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVED = (
    ("bool", "|".join((*_TRUE, *_FALSE)), "yYnNtTfFoO"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A composer that resolves scalars as Kubernetes does."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _name, _pattern, _first in _RESOLVED:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), list(_first))

_STEP = re.compile(r"\[(\d+)\]|\[([^\]]*)\]|([^.\[]+)")
_MERGE = f"{_TAG}merge"
_ALIAS = re.compile(r"\*[^\s,\[\]{}]*")
_INDENT = re.compile(r"\s*")
_KINDS = {
    f"{_TAG}bool": "true or false",
    f"{_TAG}float": "a number",
    f"{_TAG}int": "a number",
    f"{_TAG}merge": "text",
    f"{_TAG}null": "nothing",
    f"{_TAG}str": "text",
    f"{_TAG}timestamp": "text",
}
_BASES = {"0x": 16, "0b": 2, "0o": 8}


class YamlSyntaxError(Exception):
    """A text is not YAML.

    Args:
        line: The line of the problem, from 1.
        problem: The problem.
        fix: What to do about it.
    """

    def __init__(self, line: int, problem: str, fix: str = "mend it") -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem
        self.fix = fix


@dataclass(frozen=True, slots=True)
class DuplicateKey:
    """A key that a mapping has twice; YAML forbids it and most programs use the last.

    Attributes:
        key: The key.
        node: The second occurrence.
    """

    key: str
    node: Node


def compose(text: str) -> list[Node]:
    """Returns the documents of a text without empty ones.

    Raises:
        YamlSyntaxError: The text is not YAML.
    """
    loader = _Loader(text)
    try:
        documents = []
        while loader.check_node():
            documents.append(loader.get_node())
    except yaml.MarkedYAMLError as error:
        raise _named(error, text) from error
    except yaml.YAMLError as error:
        raise YamlSyntaxError(1, f"is not YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    return [document for document in documents if not is_null(document)]


def _named(error: yaml.MarkedYAMLError, text: str) -> YamlSyntaxError:
    """Rewrites the YAML parser's error so that it quotes the text."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    written = text.splitlines()[line - 1 : line] if mark else []
    words = " ".join(word for word in (error.context, error.problem) if word)
    alias = _ALIAS.match(written[0], mark.column) if written and mark else None
    if "undefined alias" in words:
        name = alias[0] if alias else "an alias"
        return YamlSyntaxError(
            line,
            f"{name} refers to an anchor that this document does not define before it",
            f"write &{name[1:] if alias else 'name'} at the value, earlier in the same document, or"
            " write the value out",
        )
    if "scanning an alias" in words:
        return YamlSyntaxError(
            line,
            "is not YAML: a text that begins with * is read as an alias",
            "quote it, as in '*.example.com'",
        )
    if written and "\t" in _INDENT.match(written[0])[0]:  # type: ignore[index]
        return YamlSyntaxError(line, "is not YAML: the indentation has a tab", "use spaces")
    return YamlSyntaxError(line, f"is not YAML: {words}")


def entries(node: MappingNode) -> tuple[dict[str, tuple[Node, Node]], list[DuplicateKey]]:
    """Returns the keys and values of a mapping by key, and its duplicate keys.

    Merge keys (``<<``) are merged, as Kubernetes' parser does.

    Raises:
        YamlSyntaxError: A merge key merges something other than mappings.
    """
    merging = [key for key, _ in node.value if key.tag == _MERGE]
    found: dict[str, tuple[Node, Node]] = {}
    twice = []
    for key, value in node.value:
        name = str(key.value) if isinstance(key, ScalarNode) else ""
        if name in found:
            twice.append(DuplicateKey(name, key))
        found[name] = (key, value)
    if not merging:
        return found, twice
    merged = MappingNode(node.tag, list(node.value), node.start_mark, node.end_mark)
    try:
        SafeConstructor().flatten_mapping(merged)
    except yaml.constructor.ConstructorError as error:
        raise YamlSyntaxError(
            line_of(merging[0]),
            "'<<' merges something other than a mapping",
            "merge a mapping, as in '<<: *defaults', or write its fields out",
        ) from error
    # The mapping's own keys come last and win.
    return {str(key.value): (key, value) for key, value in merged.value}, twice


def find(node: Node, path: str) -> Node:
    """Returns the node at a path such as ``spec.http[0].route[1].weight``, or the nearest above it.

    A key with dots has brackets: ``metadata.annotations[tidegate.dev/sticky]``.
    """
    return _found(node, path)[1]


def find_key(node: Node, path: str) -> Node:
    """Returns the key of the node that `find` returns, or that node itself in a list."""
    return _found(node, path)[0]


def _found(node: Node, path: str) -> tuple[Node, Node]:
    key_node = node
    for index, bracketed, name in _STEP.findall(path):
        if index and isinstance(node, SequenceNode) and int(index) < len(node.value):
            key_node = node = node.value[int(index)]
            continue
        key = name or bracketed or index
        if not isinstance(node, MappingNode) or key not in (found := entries(node)[0]):
            break
        key_node, node = found[key]
    return key_node, node


def node_of(value: Any) -> Node:
    """Returns the node of a plain value, as JSON has them. It has no place in a text."""
    match value:
        case None:
            return ScalarNode(f"{_TAG}null", "")
        case bool():
            return ScalarNode(f"{_TAG}bool", str(value).lower())
        case int():
            return ScalarNode(f"{_TAG}int", str(value))
        case float():
            return ScalarNode(f"{_TAG}float", repr(value))
        case Mapping():
            pairs = [(node_of(str(key)), node_of(each)) for key, each in value.items()]
            return MappingNode(f"{_TAG}map", pairs)
        case list() | tuple():
            return SequenceNode(f"{_TAG}seq", [node_of(each) for each in value])
        case _:
            return ScalarNode(f"{_TAG}str", str(value))


def value_of(node: Node) -> Any:
    """Returns the plain value of a node, as Kubernetes' parser converts it to JSON."""
    if isinstance(node, MappingNode):
        return {key: value_of(value) for key, (_, value) in entries(node)[0].items()}
    if isinstance(node, SequenceNode):
        return [value_of(each) for each in node.value]
    if is_null(node):
        return None
    truth, number = truth_of(node), number_of(node)
    if truth is not None:
        return truth
    return str(node.value) if number is None else number


def line_of(node: Node) -> int:
    """Returns the line at which a node starts, from 1; 0 for a node without a text."""
    return int(node.start_mark.line) + 1 if node.start_mark else 0


def is_null(node: Node) -> bool:
    """Returns whether a node is YAML's null, written or left empty."""
    return bool(node.tag == f"{_TAG}null")


def kind_of(node: Node) -> str:
    """Returns what a node is, in words."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    return _KINDS.get(node.tag) or f"a value with the tag {node.tag.replace(_TAG, '!!')}"


def number_of(node: Node) -> int | float | None:
    """Returns the number of a node; None where it is not one.

    A number without a fraction is a whole number in every notation (``1e2``, ``80.0``): Kubernetes'
    parser converts it to JSON, which does not distinguish ``80.0`` from ``80``.
    """
    if node.tag not in (f"{_TAG}int", f"{_TAG}float") or not isinstance(node, ScalarNode):
        return None
    text = str(node.value).replace("_", "").lower()
    sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
    base = _BASES.get(digits[:2], 10)
    if base == 10 and digits.startswith("0") and re.fullmatch("[0-7]+", digits):
        base = 8
    try:
        if base != 10 or digits.isdecimal():
            return sign * int(digits, base)
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number


def truth_of(node: Node) -> bool | None:
    """Returns whether a node is true or false; None where it is neither."""
    if node.tag != f"{_TAG}bool" or str(node.value) not in (*_TRUE, *_FALSE):
        return None
    return str(node.value) in _TRUE


def content_end(node: Node, text: str) -> int:
    """Returns the end of a node's last character. The end mark of a block is at the next token."""
    if not isinstance(node, CollectionNode) or node.flow_style or not node.value:
        end = int(node.end_mark.index)
        while end > node.start_mark.index and text[end - 1] in " \r\n":
            end -= 1
        return end
    last = node.value[-1]
    if isinstance(node, MappingNode):
        key, value = last
        # The mark of an empty value may be anywhere after the colon.
        colon = text.index(":", key.end_mark.index) + 1
        return max(colon, content_end(value, text)) if not _is_empty(value) else colon
    return content_end(last, text)


def _is_empty(node: Node) -> bool:
    return bool(node.start_mark.index == node.end_mark.index)
