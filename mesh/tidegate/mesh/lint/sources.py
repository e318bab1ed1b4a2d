"""Reads what lint is given: files, folders of files, and kustomizations.

A folder with a kustomization file is rendered, since patches and generators make its objects what
they are. Without such a file, a folder is read as it is. Then folders below it with a kustomization
file hold parts of objects, which rules about Kubernetes leave out.
"""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tidegate.istio.errors import IstioObjectErrors, ObjectProblem
from tidegate.istio.objects import IstioObjects
from tidegate.istio.reading.annotations import ENVIRONMENT
from tidegate.istio.reading.documents import Ignored, ObjectCheck, named_twice
from tidegate.istio.reading.files import Loaded, ObjectFile, parse_file, read_files
from tidegate.istio.shapes import HostName
from tidegate.mesh.compiler import unsupported
from tidegate.mesh.lint.checking import (
    KUSTOMIZATION_BELOW,
    NOT_RENDERED,
    LocatedFinding,
    check,
    findings_of_problems,
)
from tidegate.mesh.lint.findings import Rule
from tidegate.mesh.lint.knowledge.metric_declarations import names_of_adapter
from tidegate.mesh.lint.kubernetes.manifests import KINDS, Manifests, read_manifests
from tidegate.mesh.lint.kustomize import (
    Place,
    RenderError,
    Rendering,
    environment_of,
    kustomization_file,
    plain_files,
    render,
)

__all__ = ["Sources", "read_sources"]

_ON_CLUSTER: Final = ObjectCheck(lambda _: (), {}, skips_other_kinds=True)

_WORKLOADS: Final = (
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "Job",
    "CronJob",
    "Pod",
)


@dataclass(frozen=True, slots=True)
class Sources:
    """What lint was given.

    Attributes:
        loaded: Objects and files; a kustomization is one file, with the objects that it renders.
        manifests: Objects of Kubernetes in these files.
        renderings: The kustomizations, by the files that `loaded` has of them.
        findings: What is wrong with the files themselves.
        was_read: Whether Istio's objects could be read; without them no other rule runs.
        on_cluster: Whether the objects have what only Istio reads, so that none is compiled.
    """

    loaded: Loaded
    manifests: Manifests
    renderings: Mapping[str, Rendering] = field(default_factory=dict)
    findings: tuple[LocatedFinding, ...] = ()
    was_read: bool = True
    on_cluster: bool = False

    @property
    def ignored(self) -> list[str]:
        """The documents that no rule looks at."""
        return [
            str(self._moved(each))
            for each in self.loaded.ignored
            if (each.source, each.line) not in self.manifests.places
        ]

    def _moved(self, document: Ignored) -> Ignored:
        rendering = self.renderings.get(document.source)
        if rendering is None:
            return document
        place = rendering.place(document.line, "")
        return replace(document, source=place.source, line=place.line)

    def check(self, p99: Mapping[HostName, dt.timedelta] | None = None) -> list[LocatedFinding]:
        """Finds what is wrong, in the order of files and lines.

        Args:
            p99: The 99th percentile of hosts' response times, in addition to annotations.
        """
        found = check(self.loaded, p99, self.manifests, compiles=not self.on_cluster)
        return [*self.findings, *_moved_all(found, self.renderings)]


def read_sources(paths: Sequence[Path], *, renders: bool = True) -> Sources:
    """Reads files, folders of files, and kustomizations.

    Args:
        paths: The files and folders.
        renders: Whether a folder with a kustomization file is rendered. A laptop's controller
            renders nothing, and reads its files as they are.

    Raises:
        IstioError: A path cannot be read.
    """
    read = _Reading()
    for path in paths:
        read.add(path, renders=renders)
    on_cluster = False
    if read.problems:
        # A laptop refuses what it cannot compile. On a cluster Istio reads it.
        there = _Reading(_ON_CLUSTER, read.renderings)
        for path in paths:
            there.add(path, renders=renders)
        on_cluster = there.has_workloads
        read = there if on_cluster else read
    problems = [*read.problems, *_named_twice(read.files, read.renderings)]
    if problems:
        invalid = _moved_all(findings_of_problems(problems), read.renderings)
        findings = (*read.findings, *invalid)
        return Sources(Loaded(tuple(paths)), Manifests(), read.renderings, findings, was_read=False)
    objects = IstioObjects.of(item for file in read.files.values() for item in file.objects)
    loaded = Loaded(tuple(paths), read.files, objects)
    below = _below(paths, [file for file in read.files if str(file) not in read.environments])
    manifests = read_manifests(
        loaded,
        frozenset(str(file) for found in below.values() for file in found),
        read.environments,
        frozenset(_adapted_metrics(read.folders)),
    )
    findings = (*read.findings, *_told_of_parts(below, loaded))
    return Sources(loaded, manifests, read.renderings, findings, on_cluster=on_cluster)


class _Reading:
    """Files as they are read.

    Args:
        check: Yields more problems of each object.
        renderings: Kustomizations that were rendered before.
    """

    def __init__(
        self, check: ObjectCheck = unsupported, renderings: Mapping[str, Rendering] | None = None
    ) -> None:
        self._check = check
        self.renderings: dict[str, Rendering] = {**(renderings or {})}
        self.environments: dict[str, str] = {}
        self.folders: set[Path] = set()
        self.files: dict[Path, ObjectFile] = {}
        self.findings: list[LocatedFinding] = []
        self.problems: list[ObjectProblem] = []

    @property
    def has_workloads(self) -> bool:
        """Whether the files have workloads, which only a cluster runs."""
        parts = (part for file in self.files.values() for part in file.parts)
        kinds = {each.kind for part in parts for each in part.ignored}
        return not kinds.isdisjoint(_WORKLOADS)

    def add(self, path: Path, *, renders: bool) -> None:
        """Reads a file or folder."""
        kustomization = kustomization_file(path) if renders and path.is_dir() else None
        try:
            if kustomization is not None:
                self._add_kustomization(kustomization)
            else:
                self.files.update(read_files([path], self._check).files)
        except IstioObjectErrors as errors:
            self.problems += errors.problems
        except RenderError as error:
            file = kustomization or path
            self.findings.append(_of_file(NOT_RENDERED, file, error.problem, error.fix))

    def _add_kustomization(self, file: Path) -> None:
        environment = environment_of(file, ENVIRONMENT)
        listed = plain_files(file)
        if listed is not None:
            self.environments |= {str(each): environment for each in listed}
            self.folders |= {each.parent for each in listed}
            self.files.update(read_files(listed, self._check).files)
            return
        source = str(file)
        self.environments[source] = environment
        rendering = self.renderings.get(source) or render(file)
        self.renderings[source] = rendering
        self.folders |= rendering.folders
        self.files[file] = parse_file(file, rendering.text, check=self._check)


def _named_twice(
    files: Mapping[Path, ObjectFile], renderings: Mapping[str, Rendering]
) -> Iterator[ObjectProblem]:
    def place(path: Path, line: int) -> str:
        rendering = renderings.get(str(path))
        found = Place(str(path), line) if rendering is None else rendering.place(line, "")
        return f"{found.source}:{found.line}"

    return named_twice(
        (item.name, place(path, lines_before + line))
        for path, file in files.items()
        for part, lines_before in file.placed()
        for item, line in part.objects
    )


def _below(paths: Iterable[Path], files: Iterable[Path]) -> Mapping[Path, list[Path]]:
    """The files that are parts of kustomizations, by the kustomization's own file."""
    found: dict[Path, list[Path]] = {}
    roots = [path for path in paths if path.is_dir()]
    for file in files:
        root = next((each for each in roots if file.is_relative_to(each)), None)
        if root is None:
            continue
        inside = (folder for folder in file.parents if folder.is_relative_to(root))
        nearest = next(filter(None, map(kustomization_file, inside)), None)
        if nearest is not None:
            found.setdefault(nearest, []).append(file)
    return found


def _adapted_metrics(folders: Iterable[Path]) -> Iterator[str]:
    """Yields the names that prometheus-adapter's rules give, which are files beside the objects.

    They are no objects, so no kustomization has them.
    """
    for folder in sorted(folders):
        for file in sorted(folder.glob("*.yaml")):
            yield from names_of_adapter(file.read_text(errors="replace"))


def _told_of_parts(below: Mapping[Path, list[Path]], loaded: Loaded) -> Iterator[LocatedFinding]:
    """Yields a note for each kustomization whose objects of Kubernetes no rule looked at."""
    kinds = {kind for _, kind in KINDS}
    for kustomization, files in below.items():
        left_out = {str(file) for file in files}
        if any(each.source in left_out and each.kind in kinds for each in loaded.ignored):
            folder = kustomization.parent
            yield _of_file(
                KUSTOMIZATION_BELOW,
                kustomization,
                f"{folder} is a kustomization: its objects are what `kubectl kustomize` makes of"
                " them, and no rule about Kubernetes looked at its files",
                f"lint it by itself: tidegate mesh lint {folder}",
            )


def _of_file(rule: Rule, file: Path, problem: str, fix: str) -> LocatedFinding:
    return LocatedFinding(
        *(rule.name, rule.severity, f"Kustomization {file.parent}", "", str(file), 1), problem, fix
    )


def _moved_all(
    findings: Iterable[LocatedFinding], renderings: Mapping[str, Rendering]
) -> list[LocatedFinding]:
    """Moves findings from rendered texts to the files that the user wrote, in their order."""
    of_files: dict[str, list[LocatedFinding]] = {}
    for each in findings:
        of_files.setdefault(each.source, []).append(each)
    moved: list[LocatedFinding] = []
    for source, found in of_files.items():
        rendering = renderings.get(source)
        if rendering is None:
            moved += found
            continue
        places = [rendering.place(each.line, each.path) for each in found]
        written = [
            replace(each, source=place.source, line=place.line)
            for each, place in zip(found, places, strict=True)
        ]
        moved += sorted(written, key=lambda each: (each.source, each.line))
    return moved
