"""Changes of files: the bytes of a file before and after an edit of its objects."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidegate.istio.editing.aliases import aliases_of, without_aliases
from tidegate.istio.editing.plain_values import plain
from tidegate.istio.editing.yaml_text import spliced
from tidegate.istio.errors import EditError
from tidegate.istio.names import ObjectName
from tidegate.istio.objects import IstioObject, IstioObjects
from tidegate.istio.reading.documents import parse_part
from tidegate.istio.reading.files import Loaded

__all__ = ["FileChange", "plan_changes"]

_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class FileChange:
    """A change of a file.

    Attributes:
        path: The file.
        before: Its content before the change.
        after: Its content after the change.
    """

    path: Path
    before: bytes
    after: bytes


def plan_changes(loaded: Loaded, objects: IstioObjects) -> tuple[FileChange, ...]:
    """Returns how files have to change for their objects to have other values.

    Args:
        loaded: The files and their objects.
        objects: The same objects, some of them with other values.

    Raises:
        EditError: An object is in no file, or its text cannot be changed in place.
    """
    by_part: dict[tuple[Path, str], list[ObjectName]] = {}
    for name in sorted(objects.changed_from(loaded.objects), key=str):
        place = loaded.place_of(name)
        if place is None or name not in objects:
            verb = "added" if place is None else "removed"
            raise EditError(f"{name} cannot be {verb}: only objects that are in files are changed")
        file, part, _ = place
        by_part.setdefault((file.path, part.text), []).append(name)
    texts = {
        (path, text): _changed_part(path, text, names, objects)
        for (path, text), names in by_part.items()
    }
    return tuple(
        FileChange(
            path,
            loaded.files[path].text.encode(),
            "".join(
                texts.get((path, part.text), part.text) for part in loaded.files[path].parts
            ).encode(),
        )
        for path in dict.fromkeys(path for path, _ in by_part)
    )


def _changed_part(path: Path, text: str, names: Iterable[ObjectName], objects: IstioObjects) -> str:
    # The parser's places do not count a byte order mark.
    mark, text = text[: text.startswith(_MARK)], text.removeprefix(_MARK)
    wanted = {each.object.name: objects[each.object.name] for each in parse_part(text, "").objects}
    if changed := _spliced(text, names, objects, wanted):
        return mark + changed
    # Aliases repeat a value. Once it is written out, one place can change alone.
    aliases = aliases_of(text) if "*" in text else []
    attempt = without_aliases(text) if aliases else None
    if attempt is not None and (changed := _spliced(attempt, names, objects, wanted)):
        return mark + changed
    where = "; ".join(f"*{name} in line {line} of its document" for name, line in aliases)
    reason = f"aliases share its parts: {where}" if aliases else "its form does not allow it"
    fix = "write their values out" if aliases else "change the file by hand"
    raise EditError(
        f"{path}: {', '.join(map(str, names))} cannot be changed in place ({reason}); {fix}"
    )


def _spliced(
    text: str,
    names: Iterable[ObjectName],
    objects: IstioObjects,
    wanted: Mapping[ObjectName, IstioObject],
) -> str | None:
    """Returns a part with some objects changed; None where the result would mean something else."""
    for name in names:
        # The edit of an earlier object may have moved this one.
        found = [each for each in parse_part(text, "").objects if each.object.name == name]
        if len(found) != 1:
            return None
        text = spliced(text, found[0].node, plain(found[0].object), plain(objects[name]))
    result = parse_part(text, "")
    if result.problems or {each.object.name: each.object for each in result.objects} != wanted:
        return None
    return text
