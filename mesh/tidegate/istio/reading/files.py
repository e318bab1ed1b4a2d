"""Reads files and folders of YAML, and parses again only the parts that changed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tidegate.istio.errors import IstioError, IstioObjectErrors, ObjectProblem
from tidegate.istio.names import ObjectName
from tidegate.istio.objects import IstioObject, IstioObjects
from tidegate.istio.reading.documents import Ignored, ObjectCheck, named_twice, parse_part, parts

__all__ = ["Loaded", "ObjectFile", "ObjectPart", "parse_file", "read_files"]

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """A part of a file, between lines of ``---``.

    Attributes:
        text: The text of the part.
        objects: Its objects in their order, each with its line in the part.
        ignored: Its skipped documents, with lines of the part.
    """

    text: str
    objects: tuple[tuple[IstioObject, int], ...]
    ignored: tuple[Ignored, ...]


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """A file as it was read.

    Attributes:
        path: Its path.
        parts: Its parts; together they are its text.
    """

    path: Path
    parts: tuple[ObjectPart, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(part.text for part in self.parts)

    @property
    def objects(self) -> Iterator[IstioObject]:
        """Its objects, in their order."""
        return (item for part in self.parts for item, _ in part.objects)

    def placed(self) -> Iterator[tuple[ObjectPart, int]]:
        """Yields its parts, each with the number of lines before it."""
        lines_before = 0
        for part in self.parts:
            yield part, lines_before
            lines_before += part.text.count("\n")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Objects and the files that hold them.

    Attributes:
        paths: The files and folders that were requested.
        files: The files that were found, by path.
        objects: All objects.
    """

    paths: tuple[Path, ...]
    files: Mapping[Path, ObjectFile] = field(default_factory=dict)
    objects: IstioObjects = field(default_factory=IstioObjects)

    @property
    def ignored(self) -> tuple[Ignored, ...]:
        """The skipped documents."""
        return tuple(
            replace(each, line=lines_before + each.line)
            for file in self.files.values()
            for part, lines_before in file.placed()
            for each in part.ignored
        )

    def place_of(self, name: ObjectName) -> tuple[ObjectFile, ObjectPart, int] | None:
        """Returns the file and part of an object, and the number of lines before the part."""
        for file in self.files.values():
            for part, lines_before in file.placed():
                if any(each.name == name for each, _ in part.objects):
                    return file, part, lines_before
        return None


def read_files(paths: Sequence[Path], check: ObjectCheck | None = None) -> Loaded:
    """Reads files, and folders with everything below them.

    Args:
        paths: The files and folders.
        check: Yields more problems of each object.

    Raises:
        IstioObjectErrors: The files have problems. The error has all of them, of every file.
        IstioError: A path cannot be read.
    """
    files: dict[Path, ObjectFile] = {}
    problems: list[ObjectProblem] = []
    for path in _files_in(paths):
        files[path] = _read_file(path, problems, check)
    placed = (
        (item.name, f"{path}:{lines_before + line}")
        for path, file in files.items()
        for part, lines_before in file.placed()
        for item, line in part.objects
    )
    problems += named_twice(placed)
    if problems:
        raise IstioObjectErrors(problems)
    objects = IstioObjects.of(item for file in files.values() for item in file.objects)
    return Loaded(tuple(paths), files, objects)


def parse_file(
    path: Path, text: str, known: Sequence[ObjectFile] = (), check: ObjectCheck | None = None
) -> ObjectFile:
    """Parses the text of a file. Only the parts that no known text of the file has are parsed.

    Args:
        path: The file, for messages.
        text: Its text.
        known: Texts of the same file that were parsed before. An object that is equal to one of
            theirs stays the identical value.
        check: Yields more problems of each object.

    Raises:
        IstioObjectErrors: The text has problems.
    """
    problems: list[ObjectProblem] = []
    file = _parsed(path, text, known, problems, check)
    if problems:
        raise IstioObjectErrors(problems)
    return file


def _files_in(paths: Iterable[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            below = (
                each
                for each in sorted(path.rglob("*"))
                if each.suffix in _SUFFIXES
                and each.is_file()
                and not any(part.startswith(".") for part in each.relative_to(path).parts)
            )
            found.update(dict.fromkeys(below))
        else:
            found[path] = None
    return list(found)


def _read_file(path: Path, problems: list[ObjectProblem], check: ObjectCheck | None) -> ObjectFile:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IstioError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fix = "save it as UTF-8"
        problems.append(ObjectProblem(str(path), line, "", "", "is not UTF-8", fix))
        return ObjectFile(path, ())
    return _parsed(path, text, (), problems, check)


def _parsed(
    path: Path,
    text: str,
    known: Sequence[ObjectFile],
    problems: list[ObjectProblem],
    check: ObjectCheck | None,
) -> ObjectFile:
    same = {part.text: part for file in known for part in file.parts}
    earlier = {item.name: item for file in known for item in file.objects}
    read = []
    for lines_before, part_text in parts(text):
        part = same.get(part_text)
        if part is None:
            parsed = parse_part(part_text, str(path), lines_before, check)
            problems += parsed.problems
            part = ObjectPart(
                part_text,
                tuple((_kept(each.object, earlier), each.line) for each in parsed.objects),
                tuple(replace(each, line=each.line - lines_before) for each in parsed.ignored),
            )
        read.append(part)
    return ObjectFile(path, tuple(read))


def _kept(item: IstioObject, earlier: Mapping[ObjectName, IstioObject]) -> IstioObject:
    known = earlier.get(item.name)
    return item if known is None or known != item else known
