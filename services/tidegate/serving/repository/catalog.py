"""The folder of all models: ``<root>/<model>/<version>/model.json``.

Versions stand side by side, as a canary needs: ``1-fp32`` and ``1-int8`` of the same network are
two versions that two servers load. The file ``<root>/<model>/default`` holds the default version,
in one line. Without that file the default is the latest version by
:func:`~tidegate.serving.repository.versions.version_order`. So a team that keeps the file decides
itself when a new version becomes the default, and a team without it gets the newest.
"""

from dataclasses import dataclass
from pathlib import Path

from tidegate.serving.repository.document import METADATA_FILE
from tidegate.serving.repository.entry import Entry
from tidegate.serving.repository.errors import EntryNotFoundError, RepositoryError
from tidegate.serving.repository.versions import is_identifier, version_order

__all__ = ["DEFAULT_FILE", "Location", "Repository"]

DEFAULT_FILE = "default"


@dataclass(frozen=True, slots=True)
class Location:
    """The location of an entry that has not been opened.

    Attributes:
        name: The model.
        version: The version.
        path: Its folder.
    """

    name: str
    version: str
    path: Path


@dataclass(frozen=True, slots=True)
class Repository:
    """The models under one folder. Every call reads the disk; nothing is cached.

    Attributes:
        root: The folder, which need not exist yet.
    """

    root: Path

    def names(self) -> tuple[str, ...]:
        """Lists the models, in alphabetical order."""
        return tuple(sorted(folder.name for folder in _folders(self.root) if _versions(folder)))

    def versions(self, name: str) -> tuple[str, ...]:
        """Lists the versions of a model, oldest first; empty if the model is unknown."""
        if not is_identifier(name):
            return ()
        return tuple(folder.name for folder in _versions(self.root / name))

    def locations(self) -> tuple[Location, ...]:
        """Lists every entry by name and version, without opening any."""
        return tuple(
            Location(name, version, self.root / name / version)
            for name in self.names()
            for version in self.versions(name)
        )

    def default_version(self, name: str) -> str:
        """Returns the version of a model that a request without a version means.

        Raises:
            EntryNotFoundError: The model is unknown, or its ``default`` file names no version.
        """
        versions = self.versions(name)
        if not versions:
            raise EntryNotFoundError(
                f"no model {name!r} in {self.root}; it holds {_listing(self.names())}"
            )
        marker = self.root / name / DEFAULT_FILE
        if not marker.is_file():
            return versions[-1]
        default = marker.read_text(encoding="utf-8").strip()
        if default not in versions:
            raise EntryNotFoundError(
                f"{marker} names version {default!r}, but {name} has {_listing(versions)}; "
                "write one of these into it, or remove it to use the latest"
            )
        return default

    def locate(self, name: str, version: str | None = None) -> Location:
        """Finds an entry without opening it.

        Args:
            name: The model.
            version: The version; ``None`` means the default one.

        Raises:
            EntryNotFoundError: There is no such model or version; the message lists the known ones.
        """
        wanted = self.default_version(name) if version is None else version
        versions = self.versions(name)
        if wanted not in versions:
            found = f"{name} has {_listing(versions)}" if versions else _listing(self.names())
            raise EntryNotFoundError(f"no version {wanted!r} of {name!r} in {self.root}: {found}")
        return Location(name, wanted, self.root / name / wanted)

    def find(self, name: str, version: str | None = None, *, verify: bool = True) -> Entry:
        """Opens an entry.

        Args:
            name: The model.
            version: The version; ``None`` means the default one.
            verify: Whether to verify the SHA-256 of the files.

        Raises:
            EntryNotFoundError: There is no such model or version.
            MetadataError: Its ``model.json`` is wrong.
            CorruptFileError: One of its files is missing, cut short or altered.
        """
        return Entry.open(self.locate(name, version).path, verify=verify)


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if is_identifier(path.name) and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RepositoryError(f"{root} cannot be read as a model repository: {error}") from error


def _versions(folder: Path) -> list[Path]:
    entries = [path for path in _folders(folder) if (path / METADATA_FILE).is_file()]
    return sorted(entries, key=lambda path: version_order(path.name))


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "none"
