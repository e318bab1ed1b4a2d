"""The applied configuration: the texts and objects in effect, and what other texts would change.

An object whose text has not changed stays the identical value, so that nothing is compiled again
for it. Files that hold only WorkloadEntries say which servers run. They are kept apart from the
others, because servers start and stop by themselves and take effect at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tidegate.istio import (
    FileChange,
    IstioObject,
    IstioObjectErrors,
    IstioObjects,
    Kind,
    Loaded,
    ObjectName,
    plan_changes,
)
from tidegate.istio.destination_rule import DestinationRule
from tidegate.istio.reading.files import ObjectFile, parse_file
from tidegate.istio.service_entry import ServiceEntry
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler import unsupported
from tidegate.mesh.control.configuration.journal import TextChange
from tidegate.mesh.control.errors import ObjectsError

__all__ = ["AppliedConfiguration", "Differences", "Edit", "HostIndex"]

Edit = Callable[[IstioObjects], IstioObjects]
"""Returns all objects with a change."""


@dataclass(frozen=True, slots=True)
class Differences:
    """How files differ from what is in effect.

    Attributes:
        config: Files whose change goes through a transition.
        workloads: Files whose change takes effect at once.
        broken: What is wrong with files that cannot be parsed.
    """

    config: tuple[TextChange, ...] = ()
    workloads: tuple[TextChange, ...] = ()
    broken: Mapping[Path, str] = field(default_factory=dict)


class AppliedConfiguration:
    """The texts in effect and their objects."""

    def __init__(self) -> None:
        self._texts: dict[Path, str] = {}
        self._workloads: set[Path] = set()
        self._path_of: dict[ObjectName, Path] = {}
        self._hosts = HostIndex()
        # For each file, the text in effect and the text that may be next, parsed.
        self._parsed: dict[Path, dict[str, ObjectFile]] = {}

    @property
    def texts(self) -> Mapping[Path, str]:
        """The texts in effect, those of workloads included."""
        return self._texts

    @property
    def config(self) -> Mapping[Path, str]:
        """The texts in effect that go through transitions."""
        return {path: text for path, text in self._texts.items() if path not in self._workloads}

    def differences(self, texts: Mapping[Path, str], files: Mapping[Path, str]) -> Differences:
        """Compares files with what is in effect.

        Args:
            texts: The texts that the files mean.
            files: The texts that the files hold.
        """
        config: list[TextChange] = []
        workloads: list[TextChange] = []
        broken: dict[Path, str] = {}
        for path in dict.fromkeys((*texts, *self._texts)):
            before, after = self._texts.get(path), texts.get(path)
            if before == after:
                continue
            was_live = before is None or path in self._workloads
            try:
                is_live = after is None or _only_workloads(self._file(path, after))
            except IstioObjectErrors as error:
                broken[path] = str(error)
                continue
            changes = workloads if was_live and is_live else config
            changes.append(TextChange(path, before, after, files.get(path)))
        return Differences(tuple(config), tuple(workloads), broken)

    def edit(self, changes: Sequence[TextChange]) -> Edit:
        """How a change of texts changes the objects. The cost is in proportion to the files.

        Raises:
            IstioObjectErrors: A text has errors. The edit itself raises ObjectsError if two objects
                have one name.
        """
        before = [self._file(each.path, each.before) for each in changes if each.before is not None]
        after = [self._file(each.path, each.after) for each in changes if each.after is not None]
        return lambda objects: _replaced(objects, before, after)

    def take(self, changes: Sequence[TextChange]) -> None:
        """Takes a change of texts that is in effect now."""
        for each in changes:
            text = self._texts.pop(each.path, None)
            if text is not None:
                file = self._file(each.path, text)
                self._hosts.remove(file.objects)
                for item in file.objects:
                    self._path_of.pop(item.name, None)
            self._workloads.discard(each.path)
        for each in changes:
            if each.after is None:
                self._parsed.pop(each.path, None)
                continue
            file = self._file(each.path, each.after)
            self._texts[each.path] = each.after
            self._path_of.update((item.name, each.path) for item in file.objects)
            self._hosts.add(file.objects)
            if _only_workloads(file):
                self._workloads.add(each.path)

    def objects_of(self, host: str, objects: IstioObjects) -> IstioObjects:
        """The objects in effect of a host; see `HostIndex`."""
        return self._hosts.objects_of(host, objects)

    def rewritten(self, before: IstioObjects, after: IstioObjects) -> tuple[FileChange, ...]:
        """Returns the text edits that give objects new values.

        Args:
            before: Some of the objects in effect.
            after: The same objects, some of them with other values.

        Raises:
            EditError: The text of an object cannot be changed in place.
        """
        paths = {self._path_of[name] for name in after.changed_from(before)}
        files = {path: self._file(path, self._texts[path]) for path in paths}
        return plan_changes(Loaded(tuple(files), files, before), after)

    def mean_the_same(self, path: Path, one: str, other: str) -> bool:
        """Whether two texts of a file have the same objects; a text with errors never has."""
        try:
            files = [self._file(path, text).objects for text in (one, other)]
        except IstioObjectErrors:
            return False
        first, second = ({item.name: item for item in objects} for objects in files)
        return first == second

    def changed_further(self, changes: Sequence[TextChange], edit: Edit) -> tuple[TextChange, ...]:
        """Adds an edit of their objects to changes of texts.

        Args:
            changes: The changes of texts.
            edit: Changes the objects of the new texts.

        Raises:
            TidegateError: A text has errors, or the text of an object cannot be changed in place.
        """
        files = {
            each.path: self._file(each.path, each.after)
            for each in changes
            if each.after is not None
        }
        objects = IstioObjects.of(item for file in files.values() for item in file.objects)
        planned = plan_changes(Loaded(tuple(files), files, objects), edit(objects))
        texts = {each.path: each.after.decode() for each in planned}
        return tuple(replace(each, after=texts.get(each.path, each.after)) for each in changes)

    def _file(self, path: Path, text: str) -> ObjectFile:
        known = self._parsed.setdefault(path, {})
        if text not in known:
            file = parse_file(path, text, tuple(known.values()), unsupported)
            for other in [each for each in known if each != self._texts.get(path)]:
                del known[other]
            known[text] = file
        return known[text]


def _only_workloads(file: ObjectFile) -> bool:
    kinds = {item.name.kind for item in file.objects}
    return kinds == {Kind.WORKLOAD_ENTRY}


def _replaced(
    objects: IstioObjects, before: Sequence[ObjectFile], after: Sequence[ObjectFile]
) -> IstioObjects:
    old = {item.name for file in before for item in file.objects}
    new: dict[ObjectName, IstioObject] = {}
    for file in after:
        for item in file.objects:
            if item.name in new or (item.name in objects and item.name not in old):
                raise ObjectsError(
                    f"{file.path}: {item.name} is there already; keep one, or rename one"
                )
            new[item.name] = item
    changed = (item for name, item in new.items() if objects.get(name) is not item)
    return objects.without(*(old - new.keys())).with_(*changed)


class HostIndex:
    """Objects by their hosts, so that a change of one host reads the objects of no other.

    The hosts of an object are those that it defines, has rules for, or sends requests to.
    """

    def __init__(self) -> None:
        self._objects: dict[HostName, dict[ObjectName, None]] = {}
        self._short: dict[str, dict[HostName, None]] = {}

    def add(self, objects: Iterable[IstioObject]) -> None:
        """Adds objects."""
        for item in objects:
            for host in _hosts(item):
                self._objects.setdefault(host, {})[item.name] = None
                self._short.setdefault(host.partition(".")[0], {})[host] = None

    def remove(self, objects: Iterable[IstioObject]) -> None:
        """Removes objects."""
        for item in objects:
            for host in _hosts(item):
                names = self._objects.get(host, {})
                names.pop(item.name, None)
                if not names:
                    self._objects.pop(host, None)
                    self._short.get(host.partition(".")[0], {}).pop(host, None)

    def objects_of(self, host: str, objects: IstioObjects) -> IstioObjects:
        """The objects of one host.

        Args:
            host: The full name of the host, or its first label. A name that does not fit exactly
                one host gets all objects, so that the caller can say what is wrong with it.
            objects: All objects.
        """
        meant = [HostName(host)] if host in self._objects else [*self._short.get(host, ())]
        if len(meant) != 1:
            return objects
        return IstioObjects.of(objects[name] for name in self._objects[meant[0]])


def _hosts(item: IstioObject) -> Iterator[HostName]:
    match item:
        case ServiceEntry():
            yield from item.hosts
        case DestinationRule():
            yield item.host
        case VirtualService():
            yield from dict.fromkeys(
                each.destination.host for rule in item.http for each in rule.route
            )
