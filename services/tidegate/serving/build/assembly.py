"""Builds an entry of the repository atomically, and only when it is needed.

A builder writes its files into a scratch folder beside the final one. The folder is renamed into
place only when the files are complete and open as an entry. A build that dies leaves nothing that a
server could mistake for a model.
"""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tidegate.serving.build.errors import BuildError
from tidegate.serving.repository import Entry, Metadata, RepositoryError
from tidegate.serving.repository.catalog import DEFAULT_FILE
from tidegate.serving.repository.digests import digest_of
from tidegate.serving.repository.document import METADATA_FILE, render_metadata

__all__ = ["assemble", "make_default", "sound_entry"]


def sound_entry(path: Path) -> Entry | None:
    """Returns the entry at ``path`` if it exists and its checksums hold, else ``None``."""
    try:
        return Entry.open(path)
    except RepositoryError:
        return None


def assemble(root: Path, name: str, version: str, write: Callable[[Path], Metadata]) -> Entry:
    """Builds an entry in a scratch folder and moves it into place in one step.

    It replaces an existing entry once the new one is complete.

    Args:
        root: The repository.
        name: The model.
        version: The version.
        write: Writes the model's files into a folder and returns their metadata, without name,
            version, date and digests.

    Returns:
        The entry in its final place.

    Raises:
        BuildError: The files of ``write`` do not open as an entry, or cannot be moved into place.
        OSError: The repository is not writable.
    """
    final = root / name / version
    final.parent.mkdir(parents=True, exist_ok=True)
    # The leading dot hides the scratch folder from every listing of versions.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=final.parent) as scratch:
        folder = Path(scratch) / name / version
        folder.mkdir(parents=True)
        described = write(folder)
        files = {
            path.relative_to(folder).as_posix(): digest_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        complete = described.model_copy(
            update={
                "name": name,
                "version": version,
                "created": datetime.now(UTC).replace(microsecond=0),
                "files": files,
            }
        )
        (folder / METADATA_FILE).write_text(render_metadata(complete), encoding="utf-8")
        for path in (folder, *folder.rglob("*")):
            # Some writers create files that only their owner may read; a server may run as another
            # user.
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            Entry.open(folder, verify=False)
        except RepositoryError as error:
            raise BuildError(f"the build of {name} {version} is not sound: {error}") from error
        try:
            if final.exists():
                final.replace(Path(scratch) / "replaced")
            folder.replace(final)
        except OSError as error:
            raise BuildError(f"{final} cannot be replaced: {error}") from error
    return Entry.open(final, verify=False)


def make_default(root: Path, name: str, version: str) -> None:
    """Makes a version the default, unless the model already has one.

    Raises:
        OSError: The repository is not writable.
    """
    marker = root / name / DEFAULT_FILE
    if not marker.exists():
        marker.write_text(f"{version}\n", encoding="utf-8")
