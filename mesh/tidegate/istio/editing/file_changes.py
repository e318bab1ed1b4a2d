"""Changes of files: planned as bytes before and after, made in one step.

What a file held when it was read is part of the change, so that a file which another program
changed meanwhile is never overwritten, and a change can be taken back byte by byte.
"""

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
    """What is to become of a file.

    Attributes:
        path: where it is.
        before: what it has to hold for the change to be made.
        after: what it holds then.
    """

    path: Path
    before: bytes
    after: bytes


def plan_changes(loaded: Loaded, objects: IstioObjects) -> tuple[FileChange, ...]:
    """How the files have to change for their objects to be these.

    Args:
        loaded: the files as they were read.
        objects: the same objects, some of them with other values.

    Raises:
        EditError: an object is in no file, or is written in a way that cannot be changed in place.
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
    # The parser does not count a byte order mark in the places that it gives.
    mark, text = text[: text.startswith(_MARK)], text.removeprefix(_MARK)
    wanted = {each.object.name: objects[each.object.name] for each in parse_part(text, "").objects}
    if changed := _spliced(text, names, objects, wanted):
        return mark + changed
    # A value that stands in several places is changed in one of them once it is written out there.
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
    """A part with some of its objects changed; None where it does not mean what is wanted then."""
    for name in names:
        # Each object's place is found anew: the one before may have moved it.
        found = [each for each in parse_part(text, "").objects if each.object.name == name]
        if len(found) != 1:
            return None
        text = spliced(text, found[0].node, plain(found[0].object), plain(objects[name]))
    result = parse_part(text, "")
    if result.problems or {each.object.name: each.object for each in result.objects} != wanted:
        return None
    return text
