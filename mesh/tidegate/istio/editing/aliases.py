"""Replaces YAML aliases by their values, so that an edit can change one place alone.

``weight: *w`` repeats the value of ``&w``. An edit of one place must not change the others, and the
parser gives an alias no place of its own. So where aliases are in the way of an edit, the text is
first rewritten with the same meaning: each alias becomes its value, on one line. Nothing else of
the text changes.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

__all__ = ["aliases_of", "without_aliases"]

_MOST_CHARACTERS: Final = 1_000_000
_STR: Final = "tag:yaml.org,2002:str"
_PLAIN: Final = tuple(f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "merge"))


def aliases_of(text: str) -> list[tuple[str, int]]:
    """Returns the aliases of a text: the anchor of each, and its line, from 1."""
    return [(each.anchor or "", _place(each.start_mark).line + 1) for each in _aliases(text)]


def without_aliases(text: str) -> str | None:
    """Returns the text with every alias replaced by its value.

    Args:
        text: YAML without a byte order mark.

    Returns:
        The text; None where an alias cannot be replaced: its value has a type without a short form,
        contains itself, or would make the text too long.
    """
    anchored: dict[str, str] = {}
    out: list[str] = []
    end = length = 0
    for event, value in _anchors(text):
        if isinstance(event, AliasEvent):
            written = anchored.get(event.anchor or "")
            length += len(written or "")
            if written is None or length > _MOST_CHARACTERS:
                return None
            out += [text[end : _place(event.start_mark).index], written]
            end = _place(event.end_mark).index
        elif value is None:
            anchored.pop(event.anchor or "", None)
        else:
            anchored[event.anchor or ""] = value
    return "".join([*out, text[end:]])


def _place(mark: Any) -> Any:
    """Returns a mark. Types of PyYAML allow events without marks; those of a parser have them."""
    return mark


def _aliases(text: str) -> list[AliasEvent]:
    # The loader in Python gives an alias as exact a place as any other node.
    return [each for each in yaml.parse(text, yaml.SafeLoader) if isinstance(each, AliasEvent)]


def _anchors(text: str) -> Iterator[tuple[yaml.NodeEvent, str | None]]:
    """Yields anchors and aliases in order; an anchor with its value on one line, if it has one."""
    named = [
        event
        for event in yaml.parse(text, yaml.SafeLoader)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None
    ]
    starts = {_place(each.start_mark).index for each in named if not isinstance(each, AliasEvent)}
    values: dict[int, str | None] = {}
    left = [_MOST_CHARACTERS]
    for document in yaml.compose_all(text, yaml.SafeLoader):
        for node in _nodes(document, set()):
            # A block mapping starts at its first key. The key comes later, so the anchor is the
            # key's.
            if node.start_mark.index in starts:
                values[node.start_mark.index] = _written(node, left)
    for event in named:
        yield event, values.get(_place(event.start_mark).index)


def _nodes(node: Node, seen: set[int]) -> Iterator[Node]:
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, MappingNode):
        for pair in node.value:
            for each in pair:
                yield from _nodes(each, seen)
    elif isinstance(node, SequenceNode):
        for each in node.value:
            yield from _nodes(each, seen)


def _written(node: Node, left: list[int], above: tuple[int, ...] = ()) -> str | None:
    """Returns a node on one line; None where it cannot be written so.

    Args:
        node: The node.
        left: How many characters all calls together may still write.
        above: The nodes around it.
    """
    if id(node) in above or left[0] <= 0:
        return None
    above = (*above, id(node))
    parts: list[str] = []
    # Brackets and commas count too: nested empty collections grow without any text in them.
    left[0] -= 2
    if isinstance(node, ScalarNode):
        if node.tag == _STR:
            parts.append(json.dumps(node.value, ensure_ascii=False))
        elif node.tag in _PLAIN:
            parts.append(str(node.value))
        elif node.tag == "tag:yaml.org,2002:null":
            parts.append("null")
        else:
            return None
        left[0] -= len(parts[0])
        return parts[0]
    if isinstance(node, MappingNode):
        for key, value in node.value:
            name = _written(key, left, above)
            one = None if name is None else _written(value, left, above)
            if one is None:
                return None
            parts.append(f"{name}: {one}")
        return f"{{{', '.join(parts)}}}"
    for each in node.value:
        one = _written(each, left, above)
        if one is None:
            return None
        parts.append(one)
    return f"[{', '.join(parts)}]"
