"""Edits a YAML text and leaves every byte alone that does not have to change.

The editor compares the plain values of an object before and after. Each difference becomes a splice
at the place that the YAML parser gave. Comments, order, quotes and line ends elsewhere stay byte
for byte, because they are not written again. Some texts cannot be changed like this, such as a part
that aliases share. To find these, the caller reads the result and compares.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from tidegate.istio.editing.plain_values import list_steps
from tidegate.istio.names import full_host_name
from tidegate.istio.reading.nodes import content_end, entries

__all__ = ["spliced"]

_BRACKETS: Final = frozenset("[]{},")


def spliced(text: str, node: Node, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns the text with one object changed.

    Args:
        text: The text.
        node: The object's node in it.
        before: The object's plain values as they were read.
        after: The plain values to write.
    """
    namespace = str(after["metadata"]["namespace"])
    editor = _Editor(text, _Style.of(node, namespace, text))
    editor.change(node, before, after)
    return editor.result()


@dataclass(frozen=True, slots=True)
class _Style:
    """How the author of a document writes.

    Attributes:
        newline: The end of a line.
        list_indent: Columns by which a list is indented from its key.
        flow_keys: Keys whose mappings are written as ``{a: b}``.
        hosts: Names of hosts as they are written, by their full names.
    """

    newline: str
    list_indent: int
    flow_keys: frozenset[str]
    hosts: Mapping[str, str]

    @classmethod
    def of(cls, node: Node, namespace: str, text: str) -> "_Style":
        flow_keys: set[str] = set()
        hosts: dict[str, str] = {}
        indents: list[int] = []
        rest = [node]
        while rest:
            each = rest.pop()
            if isinstance(each, SequenceNode):
                rest.extend(each.value)
            if not isinstance(each, MappingNode):
                continue
            for key, value in each.value:
                rest.append(value)
                if isinstance(value, MappingNode) and value.flow_style and value.value:
                    flow_keys.add(str(key.value))
                if isinstance(value, SequenceNode) and not value.flow_style:
                    indents.append(value.start_mark.column - key.start_mark.column)
                if key.value == "host" and isinstance(value, ScalarNode):
                    hosts[full_host_name(value.value, namespace)] = value.value
        newline = "\r\n" if "\r\n" in text else "\n"
        return cls(newline, max(indents, default=2), frozenset(flow_keys), hosts)

    def block(self, value: Any, indent: int, key: str = "") -> list[str]:
        """Returns the lines of a value; those after the first are indented."""
        if not isinstance(value, Mapping | list) or not value or key in self.flow_keys:
            return [self.flow(value, key)]
        pad = " " * indent
        lines: list[str] = []
        if isinstance(value, list):
            for item in value:
                first, *more = self.block(item, indent + 2)
                lines += [f"{pad}- {first}", *more]
        else:
            for name, item in value.items():
                lines += self.entry(name, item, indent)
        lines[0] = lines[0][indent:]
        return lines

    def entry(self, key: str, value: Any, indent: int) -> list[str]:
        """Returns the lines of a key and its value, all of them indented."""
        pad = " " * indent
        is_list = isinstance(value, list)
        inner = indent + (self.list_indent if is_list else 2)
        first, *more = self.block(value, inner, key)
        nested = isinstance(value, Mapping | list) and value and key not in self.flow_keys
        if nested:
            return [f"{pad}{_scalar(key)}:", f"{' ' * inner}{first}", *more]
        return [f"{pad}{_scalar(key)}: {first}"]

    def flow(self, value: Any, key: str = "") -> str:
        """Returns a value on one line."""
        if isinstance(value, Mapping):
            pairs = (f"{_scalar(name)}: {self.flow(item, name)}" for name, item in value.items())
            return "{" + ", ".join(pairs) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(self.flow(item) for item in value) + "]"
        if key == "host":
            return _scalar(self.hosts.get(value, value))
        return _scalar(value)


@dataclass(frozen=True, slots=True)
class _Splice:
    """A replacement of a piece of text.

    Attributes:
        start: The start of the piece.
        end: The end of the piece.
        new: The new text.
        depth: The depth in the document; at one place, the deeper splice comes first.
    """

    start: int
    end: int
    new: str
    depth: int


class _Editor:
    """Collects the splices of one object."""

    def __init__(self, text: str, style: _Style) -> None:
        self._text = text
        self._style = style
        self._splices: list[_Splice] = []
        self._depth = 0

    def result(self) -> str:
        """Returns the text with all splices made, from its end to its start."""
        text = self._text
        # From the end to the start. At one place the shallower splice comes first, so that its text
        # ends up after that of the deeper one.
        self._splices.sort(key=lambda each: (each.start, each.end, -each.depth))
        for each in reversed(self._splices):
            text = text[: each.start] + each.new + text[each.end :]
        return text

    def change(self, node: Node, before: Any, after: Any, key: str = "") -> None:
        """Changes the value of a node to ``after``."""
        if before == after:
            return
        self._depth += 1
        match before, after:
            case dict(), dict() if isinstance(node, MappingNode):
                self._change_mapping(node, before, after, key)
            case list(), list() if isinstance(node, SequenceNode):
                self._change_list(node, before, after, key)
            case _:
                self._replace(node, after, key)
        self._depth -= 1

    def _splice(self, start: int, end: int, new: str) -> None:
        self._splices.append(_Splice(start, end, new, self._depth))

    def _replace(self, node: Node, value: Any, key: str) -> None:
        start, end = int(node.start_mark.index), content_end(node, self._text)
        if not isinstance(node, CollectionNode) or node.flow_style:
            new = self._style.flow(value, key)
        else:
            lines = self._style.block(value, int(node.start_mark.column), key)
            new = self._style.newline.join(lines)
        # An empty value is right after its colon.
        gap = " " if start == end and self._text[start - 1] == ":" else ""
        self._splice(start, end, gap + new)

    def _change_mapping(
        self, node: MappingNode, before: Mapping[str, Any], after: Mapping[str, Any], key: str
    ) -> None:
        found, _ = entries(node)
        names = [str(each.value) for each, _ in node.value]
        gone = [index for index, name in enumerate(names) if name in before.keys() - after.keys()]
        fresh = [name for name in after if name not in found and after[name] != before.get(name)]
        if (node.flow_style and (gone or fresh)) or len(gone) == len(names):
            self._replace(node, after, key)
            return
        spans = [
            (int(each.start_mark.index), self._end_of(each, value)) for each, value in node.value
        ]
        self._remove_entries(spans, gone)
        previous = max(index for index in range(len(names)) if index not in gone)
        for name, value in after.items():
            if name in fresh:
                self._insert_entry(node, spans[previous][1], name, value)
            elif name in found:
                self.change(found[name][1], before.get(name), value, name)
                previous = names.index(name) if name in names else previous

    def _insert_entry(self, node: MappingNode, after: int, key: str, value: Any) -> None:
        end = self._line_end(after)
        lines = self._style.entry(key, value, int(node.start_mark.column))
        self._splice(end, end, "".join(self._style.newline + line for line in lines))

    def _remove_entries(self, spans: Sequence[tuple[int, int]], gone: Sequence[int]) -> None:
        first_kept = next(index for index in range(len(spans)) if index not in gone)
        if first_kept and not self._starts_line(spans[0][0]):
            # The first key is beside the dash of a list, so the first kept key moves there.
            self._splice(spans[0][0], spans[first_kept][0], "")
            gone = [index for index in gone if index > first_kept]
        for index in gone:
            self._remove_lines(*spans[index])

    def _change_list(
        self, node: SequenceNode, before: list[Any], after: list[Any], key: str
    ) -> None:
        steps = list(list_steps(before, after))
        paired = [step.paired for step in steps]
        in_place = not node.flow_style and any(paired)
        if len(node.value) != len(before) or not (all(paired) or in_place):
            self._replace(node, after, key)
            return
        for step in steps:
            if step.paired:
                for old, new in zip(step.before, step.after, strict=True):
                    self.change(node.value[old], before[old], after[new])
                continue
            for old in step.before:
                item = node.value[old]
                self._remove_lines(int(item.start_mark.index), content_end(item, self._text))
            for new in step.after:
                self._insert_item(node, step.before.start - 1, after[new])

    def _insert_item(self, node: SequenceNode, after: int, item: Any) -> None:
        indent = int(node.start_mark.column)
        newline, pad = self._style.newline, " " * indent
        first, *more = self._style.block(item, indent + 2)
        lines = newline.join([f"{pad}- {first}", *more])
        if after < 0:
            start = int(node.start_mark.index) - indent
            self._splice(start, start, lines + newline)
        else:
            end = self._line_end(content_end(node.value[after], self._text))
            self._splice(end, end, newline + lines)

    def _remove_lines(self, start: int, end: int) -> None:
        line_start = self._text.rfind("\n", 0, start) + 1
        line_end = self._line_end(end) + len(self._style.newline)
        self._splice(line_start, min(line_end, len(self._text)), "")

    def _starts_line(self, index: int) -> bool:
        line_start = self._text.rfind("\n", 0, index) + 1
        return not self._text[line_start:index].strip()

    def _end_of(self, key: Node, value: Node) -> int:
        return max(int(key.end_mark.index) + 1, content_end(value, self._text))

    def _line_end(self, index: int) -> int:
        end = self._text.find(self._style.newline, index)
        return len(self._text) if end < 0 else end


def _scalar(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str) and not _BRACKETS.isdisjoint(value):
        # In a collection on one line these end a text without quotes.
        text = yaml.safe_dump([value], default_flow_style=True, width=1_000_000, allow_unicode=True)
        return str(text).removesuffix("\n").removeprefix("[").removesuffix("]")
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, allow_unicode=True)
    return str(text).removesuffix("\n").removesuffix("...").removesuffix("\n")
