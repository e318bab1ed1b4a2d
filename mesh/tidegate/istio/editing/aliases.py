"""Aliases of YAML written out, so that a value can be changed in one of its places alone.

``weight: *w`` is another place of what ``&w`` names. A change of one place has to leave the others
as they are, and the parser gives an alias no place of its own. So a text whose aliases are in the
way of a change is first rewritten to mean the same without them: each alias becomes its value, on
one line. Nothing else of the text changes.
"""

import json
from collections.abc import Iterator
from typing import Final

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

__all__ = ["aliases_of", "without_aliases"]

_MOST_CHARACTERS: Final = 1_000_000
_STR: Final = "tag:yaml.org,2002:str"
_PLAIN: Final = tuple(f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "merge"))


def aliases_of(text: str) -> list[tuple[str, int]]:
    """The aliases of a text: the anchor that each names, and its line, from 1."""
    return [(each.anchor, each.start_mark.line + 1) for each in _aliases(text)]


def without_aliases(text: str) -> str | None:
    """The same text with every alias written out.

    Args:
        text: YAML without a byte order mark.

    Returns:
        The text; None where an alias cannot be written out: its value is of a type that has no
        short form, contains itself, or would make the text too long.
    """
    anchored: dict[str, str] = {}
    out: list[str] = []
    end = length = 0
    for event, value in _anchors(text):
        if isinstance(event, AliasEvent):
            written = anchored.get(event.anchor)
            length += len(written or "")
            if written is None or length > _MOST_CHARACTERS:
                return None
            out += [text[end : event.start_mark.index], written]
            end = event.end_mark.index
        elif value is None:
            anchored.pop(event.anchor, None)
        else:
            anchored[event.anchor] = value
    return "".join([*out, text[end:]])


def _aliases(text: str) -> list[AliasEvent]:
    # The loader in Python, because it places an alias as exactly as it does any other node.
    return [each for each in yaml.parse(text, yaml.SafeLoader) if isinstance(each, AliasEvent)]


def _anchors(text: str) -> Iterator[tuple[yaml.NodeEvent, str | None]]:
    """Anchors and aliases in their order; an anchor with its value on one line, if it has one."""
    named = [
        event
        for event in yaml.parse(text, yaml.SafeLoader)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None
    ]
    starts = {each.start_mark.index for each in named if not isinstance(each, AliasEvent)}
    values: dict[int, str | None] = {}
    left = [_MOST_CHARACTERS]
    for document in yaml.compose_all(text, yaml.SafeLoader):
        for node in _nodes(document, set()):
            # A block mapping begins where its first key does; the key, which comes later, has the
            # anchor.
            if node.start_mark.index in starts:
                values[node.start_mark.index] = _written(node, left)
    for event in named:
        yield event, values.get(event.start_mark.index)


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
    """A node on one line; None where it cannot be written so.

    Args:
        node: the node.
        left: how many characters may still be written, of all calls together.
        above: the nodes that it stands in.
    """
    if id(node) in above or left[0] <= 0:
        return None
    above = (*above, id(node))
    parts: list[str] = []
    # Its brackets and commas too: collections of empty ones grow without any text in them.
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
