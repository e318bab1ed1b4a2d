"""Reads rollouts from YAML and JSON, and writes them.

A text with faults is refused with all of them at once, each with its line, its path and the fix.
How fields fit together is judged where each of them is right by itself.

A scalar without quotes has the type that Kubernetes gives it, so that a file is the same rollout
here and on a cluster: ``yes`` and ``off`` are booleans, ``1e3`` is a number.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tidegate.istio.reading.nodes import (
    YamlSyntaxError,
    compose,
    entries,
    is_null,
    kind_of,
    line_of,
    value_of,
)
from tidegate.rollout.spec.checking import Steps, check, path_of
from tidegate.rollout.spec.faults import Fault, RolloutFileError, SpecError
from tidegate.rollout.spec.model import API_VERSION, KIND, Rollout

__all__ = [
    "MOST_BYTES",
    "Placed",
    "RolloutFileError",
    "SpecError",
    "dump",
    "read_files",
    "read_placed",
    "read_rollouts",
    "rollout_of_values",
    "texts_of",
]

MOST_BYTES: Final = 1 << 20
"""The largest text that is read; a rollout is about a thousand bytes."""

_MOST_NODES: Final = 20_000
_DEEPEST: Final = 40
# Folders hold other JSON too: schemas, dashboards.
_SUFFIXES: Final = (".yaml", ".yml")
_GROUP: Final = API_VERSION.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Placed:
    """A rollout and where it is written.

    Attributes:
        rollout: The rollout.
        source: The file.
        node: Its node, which has its lines.
    """

    rollout: Rollout
    source: str
    node: Node

    def line(self, steps: Steps) -> int:
        """Returns the line of a field, or of the nearest field above it that is written."""
        return line_of(_found(self.node, steps)[0])


def read_rollouts(text: str, source: str) -> tuple[Rollout, ...]:
    """Reads the rollouts of a text.

    Args:
        text: One or more YAML documents, or JSON.
        source: A name of the text for messages.

    Raises:
        SpecError: The text has faults. The error has all of them.
    """
    return tuple(each.rollout for each in read_placed([(text, source)]))


def read_files(paths: Iterable[Path]) -> tuple[Placed, ...]:
    """Reads the rollouts of files, and of folders with all folders in them.

    Raises:
        RolloutFileError: There is no such file or folder, or it cannot be read.
        SpecError: The files have faults. The error has those of all files.
    """
    return read_placed(texts_of(paths))


def texts_of(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Returns the texts of files, and of the YAML files in folders, with their names.

    Raises:
        RolloutFileError: There is no such file or folder, or it cannot be read.
    """
    texts = []
    for path in _files(paths):
        try:
            if path.stat().st_size > MOST_BYTES:
                # The reader refuses it by its length; it needs none of the text.
                texts.append(("#" * (MOST_BYTES + 1), str(path)))
            else:
                texts.append((path.read_text(encoding="utf-8"), str(path)))
        except UnicodeDecodeError as error:
            raise RolloutFileError(f"{path}: is not text in UTF-8: {error}") from error
        except OSError as error:
            raise RolloutFileError(f"{path}: {error.strerror or error}") from error
    return texts


def read_placed(texts: Sequence[tuple[str, str]]) -> tuple[Placed, ...]:
    """Reads the rollouts of several texts, and refuses a name that is given twice.

    Args:
        texts: Texts and their names for messages.

    Raises:
        SpecError: The texts have faults. The error has all of them.
    """
    faults: list[Fault] = []
    placed: list[Placed] = []
    first: dict[str, str] = {}
    for text, source in texts:
        for found in _read_text(text, source):
            if isinstance(found, Fault):
                faults.append(found)
                continue
            placed.append(found)
            key, line = found.rollout.key, found.line(("metadata", "name"))
            if key in first:
                words = f"{key} is already defined at {first[key]}; give one another name"
                faults.append(Fault("metadata.name", words, source, line))
            first.setdefault(key, f"{source}:{line}")
    if faults:
        raise SpecError(faults)
    return tuple(placed)


def rollout_of_values(value: object, source: str = "") -> Rollout:
    """Makes a rollout of plain values, as JSON has them.

    Raises:
        SpecError: The values have faults. The error has all of them.
    """
    found = check(value)
    if isinstance(found, Rollout):
        return found
    raise SpecError(Fault(path_of(steps), text, source) for steps, text in found)


def dump(rollout: Rollout) -> str:
    """Returns a rollout as YAML without the defaults, which reads as the same rollout."""
    value = rollout.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes texts so that Kubernetes' parser reads texts: ``yes`` and ``1e3`` get quotes."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    (node,) = _composed(text) or (None,)
    is_plain = isinstance(node, ScalarNode) and kind_of(node) == "text" and node.value == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


def _composed(text: str) -> list[Node]:
    try:
        return compose(text)
    except YamlSyntaxError:
        return []


_Dumper.add_representer(str, _text_node)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                each for each in path.rglob("*") if each.suffix in _SUFFIXES and each.is_file()
            )
        elif path.exists():
            yield path
        else:
            raise RolloutFileError(f"{path}: there is no such file or folder")


def _read_text(text: str, source: str) -> Iterator[Placed | Fault]:
    """Yields the rollouts and the faults of a text."""
    if len(text) > MOST_BYTES:
        words = f"is larger than {MOST_BYTES >> 10} KiB; split it, or remove what is no rollout"
        yield Fault("", words, source)
        return
    try:
        _check_nesting(text)
        documents = compose(text)
    except YamlSyntaxError as error:
        yield Fault("", f"{error.problem}; {error.fix}", source, error.line)
        return
    if not documents:
        yield Fault("", "is empty; write apiVersion, kind, metadata and spec", source)
        return
    for document in documents:
        try:
            size = _size(document, {})
            if size > _MOST_NODES:
                words = f"has more than {_MOST_NODES} values; is an alias repeated in an alias?"
                yield Fault("", words, source, line_of(document))
                continue
            for node in _objects(document):
                yield from _read_object(node, source)
        except YamlSyntaxError as error:
            yield Fault("", f"{error.problem}; {error.fix}", source, error.line)


def _check_nesting(text: str) -> None:
    """Refuses a text that is nested too deeply for the composer, which is recursive.

    Raises:
        YamlSyntaxError: The text is nested too deeply. Other faults are left to the composer.
    """
    depth = 0
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _DEEPEST:
                    problem = f"is nested more than {_DEEPEST} levels deep"
                    raise YamlSyntaxError(
                        event.start_mark.line + 1 if event.start_mark else 1, problem, "flatten it"
                    )
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError:
        return


def _size(node: Node, sizes: dict[int, int]) -> int:
    """Returns how many values a node has once its aliases are written out.

    Raises:
        YamlSyntaxError: A value contains itself.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise YamlSyntaxError(line_of(node), "contains itself by an alias", "write the value out")
    if known is not None:
        return known
    sizes[id(node)] = 0
    total = 1
    if isinstance(node, MappingNode):
        total += sum(_size(key, sizes) + _size(value, sizes) for key, value in node.value)
    elif isinstance(node, SequenceNode):
        total += sum(_size(each, sizes) for each in node.value)
    sizes[id(node)] = total
    return total


def _objects(document: Node) -> Iterator[Node]:
    """Yields the document, or the items of a ``kind: List``."""
    if isinstance(document, MappingNode):
        found, _ = entries(document)
        if "kind" in found and found["kind"][1].value == "List" and "items" in found:
            items = found["items"][1]
            if isinstance(items, SequenceNode):
                yield from items.value
                return
    yield document


def _read_object(node: Node, source: str) -> Iterator[Placed | Fault]:
    if not isinstance(node, MappingNode):
        words = f"is {kind_of(node)}; write apiVersion, kind, metadata and spec"
        yield Fault("", words, source, line_of(node))
        return
    found, _ = entries(node)
    if (other := _other_kind(found)) is not None:
        key, words = other
        yield Fault(key, words, source, line_of(found[key][0]))
        return
    faults = [
        Fault(path_of((*steps, key)), "is given twice; keep one", source, line_of(twice))
        for steps, key, twice in _twice(node, ())
    ]
    checked = check(value_of(node), lambda steps: _written(node, steps))
    if isinstance(checked, Rollout):
        yield from faults
        if not faults:
            yield Placed(checked, source, node)
        return
    for steps, text in checked:
        faults.append(Fault(path_of(steps), text, source, line_of(_found(node, steps)[0])))
    yield from sorted(faults, key=lambda each: each.line)


def _other_kind(found: dict[str, tuple[Node, Node]]) -> tuple[str, str] | None:
    """Returns the key and the words of what says that a document is no rollout; None if it is."""
    version = str(found["apiVersion"][1].value) if "apiVersion" in found else API_VERSION
    kind = str(found["kind"][1].value) if "kind" in found else KIND
    if kind != KIND:
        return "kind", f"{kind or 'nothing'} is not {KIND}; only rollouts can be here"
    if version != API_VERSION and version.partition("/")[0] != _GROUP:
        return "apiVersion", f"{version or 'nothing'} is not known; write {API_VERSION}"
    return None


def _twice(node: Node, steps: Steps) -> Iterator[tuple[Steps, str, Node]]:
    """Yields the keys that mappings have twice."""
    if isinstance(node, MappingNode):
        found, duplicates = entries(node)
        for duplicate in duplicates:
            yield steps, duplicate.key, duplicate.node
        for key, (_, value) in found.items():
            yield from _twice(value, (*steps, key))
    elif isinstance(node, SequenceNode):
        for index, each in enumerate(node.value):
            yield from _twice(each, (*steps, index))


def _found(node: Node, steps: Steps) -> tuple[Node, Node]:
    """Returns the key and the value of a place, or those of the nearest place above it."""
    key_node = node
    for step in steps:
        if isinstance(step, int) and isinstance(node, SequenceNode) and step < len(node.value):
            key_node = node = node.value[step]
        elif isinstance(step, str) and isinstance(node, MappingNode):
            found = entries(node)[0]
            if step not in found:
                break
            key_node, node = found[step]
        else:
            break
    return key_node, node


def _written(node: Node, steps: Steps) -> str | None:
    """Returns the text of the scalar at a place; None if there is none."""
    for step in steps:
        if isinstance(step, int) and isinstance(node, SequenceNode) and step < len(node.value):
            node = node.value[step]
        elif isinstance(step, str) and isinstance(node, MappingNode):
            found = entries(node)[0]
            if step not in found:
                return None
            node = found[step][1]
        else:
            return None
    return str(node.value) if isinstance(node, ScalarNode) and not is_null(node) else None
