"""YAML as nodes that know their lines.

Nodes and not plain values, because every problem names its line and every change of an object is
made at its place in the text. The composer is libyaml's, since a mesh of a thousand hosts has
tens of thousands of lines.
"""

import re
from dataclasses import dataclass

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
    "is_null",
    "kind_of",
    "line_of",
]

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\[(\d+)\]|\[([^\]]*)\]|([^.\[]+)")
_KINDS = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:null": "nothing",
}


class YamlSyntaxError(Exception):
    """A text is not YAML.

    Args:
        line: where, from 1.
        problem: what the parser says.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class DuplicateKey:
    """A key that a mapping has twice; YAML forbids it and most programs take the last.

    Attributes:
        key: the key.
        node: its second place.
    """

    key: str
    node: Node


def compose(text: str) -> list[Node]:
    """The documents of a text; empty ones are left out.

    Raises:
        YamlSyntaxError: the text is not YAML.
    """
    loader = _Loader(text)
    try:
        documents = []
        while loader.check_node():
            documents.append(loader.get_node())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(word for word in (error.context, error.problem) if word)
        raise YamlSyntaxError(mark.line + 1 if mark else 1, words) from error
    except yaml.YAMLError as error:
        raise YamlSyntaxError(1, " ".join(str(error).split())) from error
    finally:
        loader.dispose()
    return [document for document in documents if not is_null(document)]


def entries(node: MappingNode) -> tuple[dict[str, tuple[Node, Node]], list[DuplicateKey]]:
    """The keys and values of a mapping by key, and the keys that it has twice.

    Merge keys (``<<``) are merged, as Kubernetes' parser does.
    """
    if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
        merged = MappingNode(node.tag, list(node.value), node.start_mark, node.end_mark)
        SafeConstructor().flatten_mapping(merged)
        # What stands in the mapping itself comes last and wins.
        return {str(key.value): (key, value) for key, value in merged.value}, []
    found: dict[str, tuple[Node, Node]] = {}
    twice = []
    for key, value in node.value:
        name = str(key.value) if isinstance(key, ScalarNode) else ""
        if name in found:
            twice.append(DuplicateKey(name, key))
        found[name] = (key, value)
    return found, twice


def find(node: Node, path: str) -> Node:
    """The node at a path such as ``spec.http[0].route[1].weight``, or the nearest above it.

    A key with dots stands in brackets: ``metadata.annotations[tidegate.dev/sticky]``.
    """
    for index, bracketed, name in _STEP.findall(path):
        if index and isinstance(node, SequenceNode) and int(index) < len(node.value):
            node = node.value[int(index)]
            continue
        key = name or bracketed or index
        if not isinstance(node, MappingNode) or key not in (found := entries(node)[0]):
            break
        node = found[key][1]
    return node


def line_of(node: Node) -> int:
    """The line at which a node starts, from 1."""
    return int(node.start_mark.line) + 1


def is_null(node: Node) -> bool:
    """Whether a node is YAML's null, written or left empty."""
    return bool(node.tag == "tag:yaml.org,2002:null")


def kind_of(node: Node) -> str:
    """What a node is, in words."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    return _KINDS.get(node.tag, "text")


def content_end(node: Node, text: str) -> int:
    """Where the last character of a node stands; a block's own mark is at what comes after it."""
    if not isinstance(node, CollectionNode) or node.flow_style or not node.value:
        end = int(node.end_mark.index)
        while end > node.start_mark.index and text[end - 1] in " \r\n":
            end -= 1
        return end
    last = node.value[-1]
    if isinstance(node, MappingNode):
        key, value = last
        # The mark of a value that is left empty may be anywhere after the colon.
        colon = text.index(":", key.end_mark.index) + 1
        return max(colon, content_end(value, text)) if not _is_empty(value) else colon
    return content_end(last, text)


def _is_empty(node: Node) -> bool:
    return bool(node.start_mark.index == node.end_mark.index)
