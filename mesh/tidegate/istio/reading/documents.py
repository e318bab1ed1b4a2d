"""Reads objects from YAML documents and from the manifests of an API server.

Documents of other API groups (a Service, a Telemetry) are skipped and listed, since folders of
manifests hold them. A kind of ``networking.istio.io`` that Tidegate does not compile is an error,
because on a cluster traffic would depend on it. Lint skips it in the manifests of a cluster.
"""

import enum
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tidegate.istio import rules
from tidegate.istio.errors import IstioError, IstioObjectErrors, ObjectProblem
from tidegate.istio.names import DEFAULT_NAMESPACE, Kind, ObjectName
from tidegate.istio.objects import CLASSES, IstioObject, IstioObjects
from tidegate.istio.reading.annotations import PREFIX, read_annotations
from tidegate.istio.reading.messages import annotations_of, read_message
from tidegate.istio.reading.nodes import (
    YamlSyntaxError,
    compose,
    entries,
    find_key,
    is_null,
    kind_of,
    line_of,
    node_of,
)
from tidegate.istio.reading.scalar_readers import (
    NOTHING,
    SCALAR_READERS,
    Reading,
    join,
    meant,
    read_key,
    wrong_kind,
)
from tidegate.istio.scalars import is_label, is_label_name, is_label_value, is_object_name, is_time

__all__ = [
    "Ignored",
    "ObjectCheck",
    "Parsed",
    "ParsedObject",
    "flat",
    "named_twice",
    "parse",
    "parse_manifest",
    "parse_part",
    "parts",
]

_GROUP = "networking.istio.io"
# Istio's CRDs serve every compiled kind in all three versions, with the same fields.
_VERSIONS = (f"{_GROUP}/v1", f"{_GROUP}/v1beta1", f"{_GROUP}/v1alpha3")
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = (
    *("name", "namespace", "labels", "annotations", "generateName", "creationTimestamp"),
    *("deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generation"),
    *("managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid"),
)
_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class ObjectCheck:
    """What a program, such as the compiler, does not support of the objects that it reads.

    Attributes:
        violations: Yields what an object asks for and the program does not support.
        refused_values: Values of enums that the program refuses.
        skips_other_kinds: Whether kinds of Istio that Tidegate does not compile are skipped, as
            documents of other groups are.
    """

    violations: Callable[[IstioObject], Iterable[rules.Violation]]
    refused_values: Mapping[type[enum.Enum], Collection[str]]
    skips_other_kinds: bool = False

    def __call__(self, item: IstioObject) -> Iterable[rules.Violation]:
        """Yields the violations of an object, by paths from its root."""
        return self.violations(item)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A document that is skipped.

    Attributes:
        source: The file.
        line: The line there, from 1.
        kind: The kind of the document.
        name: Its name; empty where it has none.
    """

    source: str
    line: int
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.kind} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """An object and its node.

    Attributes:
        object: The object.
        node: Its node in the text of its part.
    """

    object: IstioObject
    node: Node

    @property
    def line(self) -> int:
        """Its first line in its part, from 1."""
        return line_of(self.node)


@dataclass(slots=True)
class Parsed:
    """The result of parsing a part of a text.

    Attributes:
        source: The source of the text.
        lines_before: The number of lines of the text before the part.
        validated: Whether an API server has validated the objects; see `parse_manifest`.
        check: Yields more problems of each object, by paths from its root.
        objects: The objects in their order.
        ignored: The skipped documents; their lines are those of the whole text.
        problems: All problems; their lines are those of the whole text.
    """

    source: str
    lines_before: int = 0
    validated: bool = False
    check: ObjectCheck | None = None
    objects: list[ParsedObject] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    problems: list[ObjectProblem] = field(default_factory=list)

    def refuse(self, line: int, owner: str, path: str, problem: str, fix: str) -> None:
        """Adds a problem at a line of the part."""
        line += self.lines_before
        self.problems.append(ObjectProblem(self.source, line, owner, path, problem, fix))


def parse(text: str, source: str) -> IstioObjects:
    """Parses the objects of a text.

    Args:
        text: YAML documents.
        source: A name of the text for problems.

    Raises:
        IstioObjectErrors: The text has problems. The error has all of them.
    """
    parsed = [parse_part(part, source, before) for before, part in parts(text)]
    problems = [problem for each in parsed for problem in each.problems]
    placed = (
        (found.object.name, f"{source}:{each.lines_before + found.line}")
        for each in parsed
        for found in each.objects
    )
    problems += named_twice(placed)
    if problems:
        raise IstioObjectErrors(problems)
    return IstioObjects.of(found.object for each in parsed for found in each.objects)


def parse_manifest(manifest: Mapping[str, Any], source: str = "API server") -> IstioObject:
    """Parses a manifest as an API server returns it, with uid, managedFields and status.

    The server has validated the object. So a field that Tidegate does not know, or a value that it
    cannot read, is no error: the object keeps it unchanged. If the field is required, the object
    keeps the nearest optional field around it. There is none around ``servers`` of a Gateway, so a
    protocol of a newer Istio there is an error.

    Args:
        manifest: The manifest as plain values.
        source: A name of the manifest for problems, which have paths and no lines.

    Raises:
        IstioObjectErrors: The manifest has no name or no spec, a required field that no optional
            field contains cannot be read, or a ``tidegate.dev`` annotation is wrong, which no API
            server checks.
        IstioError: Tidegate does not read the kind of the manifest.
    """
    parsed = Parsed(source, validated=True)
    _read_document(node_of(manifest), parsed)
    if parsed.problems:
        raise IstioObjectErrors(parsed.problems)
    if not parsed.objects:
        raise IstioError(f"{source}: {manifest.get('kind')} is not an object of {_GROUP}")
    return parsed.objects[0].object


def parts(text: str) -> Iterator[tuple[int, str]]:
    """Yields the parts between lines of ``---``, as in Kubernetes, and the lines before each.

    When only one part has changed, only that part has to be parsed again.
    """
    lines_before, start = 0, 0
    for marker in _MARKER.finditer(text):
        if marker.start() > start:
            part = text[start : marker.start()]
            yield lines_before, part
            lines_before += part.count("\n")
            start = marker.start()
    yield lines_before, text[start:]


def parse_part(
    text: str, source: str, lines_before: int = 0, check: ObjectCheck | None = None
) -> Parsed:
    """Parses the objects of one part and collects its problems.

    Args:
        text: The part.
        source: The source of the whole text.
        lines_before: The number of lines of the whole text before the part.
        check: Yields more problems of each object, by paths from its root.
    """
    parsed = Parsed(source, lines_before, check=check)
    try:
        documents = compose(text)
    except YamlSyntaxError as error:
        parsed.refuse(error.line, "", "", error.problem, error.fix)
        return parsed
    for document in documents:
        try:
            for node in flat(document):
                _read_document(node, parsed)
        except YamlSyntaxError as error:
            parsed.refuse(error.line, "", "", error.problem, error.fix)
    return parsed


def named_twice(placed: Iterable[tuple[ObjectName, str]]) -> Iterator[ObjectProblem]:
    """Yields a problem for each object that has the name of an earlier one.

    Args:
        placed: Names with their places, each ``source:line``.
    """
    first: dict[ObjectName, str] = {}
    for name, place in placed:
        if name in first:
            source, _, line = place.rpartition(":")
            problem = f"is already defined at {first[name]}"
            fix = "keep one, or give it another name"
            yield ObjectProblem(source, int(line), str(name), "metadata.name", problem, fix)
        first.setdefault(name, place)


def flat(document: Node) -> Iterator[Node]:
    """Yields the document, or the items of a ``kind: List``."""
    if isinstance(document, MappingNode):
        found, _ = entries(document)
        if _text(found, "kind") == "List" and "items" in found:
            items = found["items"][1]
            if isinstance(items, SequenceNode):
                yield from items.value
            return
    yield document


def _read_document(node: Node, parsed: Parsed) -> None:
    line = line_of(node)
    if not isinstance(node, MappingNode):
        fix = "write apiVersion, kind, metadata and spec"
        parsed.refuse(line, "", "", f"is {kind_of(node)} and not an object", fix)
        return
    found, twice = entries(node)
    version, kind = _text(found, "apiVersion"), _text(found, "kind")
    if not version or not kind:
        missing = "kind" if version else "apiVersion"
        parsed.refuse(line, kind, missing, "is missing", "every object has apiVersion and kind")
    elif version.partition("/")[0] != _GROUP or (
        kind not in _KINDS and parsed.check is not None and parsed.check.skips_other_kinds
    ):
        metadata = found.get("metadata", (node, node))[1]
        parsed.ignored.append(
            Ignored(parsed.source, parsed.lines_before + line, kind, _name_in(metadata))
        )
    elif kind not in _KINDS:
        fix = f"Tidegate compiles {', '.join(_KINDS)}; remove it, or keep it in another folder"
        line = line_of(found["kind"][1])
        parsed.refuse(line, kind, "kind", "is not supported: traffic would depend on it", fix)
    else:
        for each in twice:
            parsed.refuse(line_of(each.node), kind, each.key, "is given twice", "keep one")
        if version not in _VERSIONS:
            fix = f"write {_VERSIONS[0]}"
            problem = f"{version} is not an API version of Istio; known are {', '.join(_VERSIONS)}"
            parsed.refuse(line_of(found["apiVersion"][1]), kind, "apiVersion", problem, fix)
        _read_object(node, _KINDS[kind], parsed)


def _read_object(node: MappingNode, kind: Kind, parsed: Parsed) -> None:
    found, _ = entries(node)
    metadata = found["metadata"][1] if "metadata" in found else None
    in_metadata = entries(metadata)[0] if isinstance(metadata, MappingNode) else {}
    in_metadata = {key: pair for key, pair in in_metadata.items() if not is_null(pair[1])}
    namespace = _text(in_metadata, "namespace") or DEFAULT_NAMESPACE
    name = ObjectName(kind, namespace, _text(in_metadata, "name"))
    refused_values = parsed.check.refused_values if parsed.check is not None else {}
    reading = Reading(namespace, parsed.validated, refused_values)
    if not parsed.validated:
        for key in found.keys() - set(_TOP):
            reading.refuse(found[key][0], key, "is not a field here", meant(key, _TOP))
        if metadata is not None and not is_null(metadata) and not isinstance(metadata, MappingNode):
            wrong_kind(metadata, "metadata", reading, "a mapping")
        _check_metadata(metadata or node, in_metadata, name, reading)
    elif not name.name:
        reading.refuse(node, "metadata.name", "is missing", "add it")
    cls = CLASSES[kind]
    pair = in_metadata.get("annotations")
    noted = pair[1] if pair is not None and not is_null(pair[1]) else None
    known = annotations_of(cls)  # type: ignore[arg-type]  # a class can be hashed
    annotations = read_annotations(noted, known, "metadata.annotations", reading)
    made: Any = NOTHING
    if "spec" not in found or is_null(found["spec"][1]):
        reading.refuse(node, "spec", "is missing", "add it")
    else:
        spec = found["spec"][1]
        made = read_message(spec, cls, "spec", reading, name=name, annotations=annotations)
    if made is not NOTHING and parsed.check is not None:
        refused = [path for _, path, _, _ in reading.problems]
        for found_wrong in parsed.check(made):
            # Where a value could not be read, the object has the field's default.
            if any(_is_at_or_below(path, found_wrong.path) for path in refused):
                continue
            place = find_key(node, found_wrong.path)
            reading.refuse(place, found_wrong.path, found_wrong.problem, found_wrong.fix)
    for line, path, problem, fix in sorted(reading.problems, key=lambda each: each[0]):
        parsed.refuse(line, str(name) if name.name else kind.value, path, problem, fix)
    if made is not NOTHING and not reading.problems:
        parsed.objects.append(ParsedObject(made, node))


def _is_at_or_below(path: str, above: str) -> bool:
    return path == above or path.startswith((f"{above}.", f"{above}["))


def _check_metadata(
    place: Node, found: dict[str, tuple[Node, Node]], name: ObjectName, reading: Reading
) -> None:
    """Checks what Kubernetes requires of an object's metadata."""
    for key in found.keys() - set(_METADATA):
        fix = meant(key, _METADATA)
        reading.refuse(found[key][0], join("metadata", key), "is not a field here", fix)
    if not name.name:
        reading.refuse(place, "metadata.name", "is missing", "add it")
    elif SCALAR_READERS[str](found["name"][1], "metadata.name", reading) is NOTHING:
        pass
    elif not is_object_name(name.name):
        fix = "use a-z, 0-9, - and dots"
        reading.refuse(found["name"][1], "metadata.name", f"cannot be {name.name!r}", fix)
    elif name.kind is Kind.GATEWAY and not is_label(name.name):
        fix = "use a-z, 0-9 and -, at most 63"
        problem = f"cannot be {name.name!r}: a Gateway's name is one label"
        reading.refuse(found["name"][1], "metadata.name", problem, fix)
    if "namespace" in found:
        where = found["namespace"][1]
        read = SCALAR_READERS[str](where, "metadata.namespace", reading)
        if read is not NOTHING and not is_label(name.namespace):
            fix = "use a-z, 0-9 and -"
            problem = f"cannot be {name.namespace!r}"
            reading.refuse(where, "metadata.namespace", problem, fix)
    for field_name in ("creationTimestamp", "deletionTimestamp"):
        if field_name in found:
            _check_time(found[field_name][1], f"metadata.{field_name}", reading)
    for field_name, checks_value in (("labels", is_label_value), ("annotations", None)):
        if field_name in found:
            _check_texts(found[field_name][1], f"metadata.{field_name}", checks_value, reading)


def _check_time(node: Node, path: str, reading: Reading) -> None:
    text = SCALAR_READERS[str](node, path, reading)
    if text is not NOTHING and not is_time(text):
        fix = "write it like 2026-01-31T12:00:00Z, or remove it"
        reading.refuse(node, path, f"{text!r} is not a time", fix)


def _check_texts(
    node: Node, path: str, is_value: Callable[[str], bool] | None, reading: Reading
) -> None:
    """Checks labels or annotations: Kubernetes accepts only texts, under qualified names."""
    if not isinstance(node, MappingNode):
        wrong_kind(node, path, reading, "a mapping")
        return
    for key, (key_node, value_node) in entries(node)[0].items():
        place = join(path, key)
        if read_key(SCALAR_READERS[str], key_node, place, reading) is NOTHING:
            continue
        if not is_label_name(key):
            fix = "write it like version or example.com/tier"
            reading.refuse(key_node, place, f"{key!r} is not a label name", fix)
        # `read_annotations` checks our own annotations; a missing value is an empty one.
        if is_null(value_node) or key.startswith(PREFIX):
            continue
        value = SCALAR_READERS[str](value_node, place, reading)
        if value is not NOTHING and is_value is not None and not is_value(value):
            fix = "use letters, 0-9, -, _ and dots, at most 63"
            reading.refuse(value_node, place, f"{value!r} is not a label value", fix)


def _text(found: dict[str, tuple[Node, Node]], key: str) -> str:
    pair = found.get(key)
    return str(pair[1].value) if pair is not None and isinstance(pair[1], ScalarNode) else ""


def _name_in(metadata: Node) -> str:
    found = entries(metadata)[0] if isinstance(metadata, MappingNode) else {}
    name, namespace = _text(found, "name"), _text(found, "namespace")
    return f"{namespace}/{name}" if namespace else name
