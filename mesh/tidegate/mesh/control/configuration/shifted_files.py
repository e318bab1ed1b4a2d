"""The texts that shifts changed, kept apart from the files that people write.

A shift does not write to a file of objects. It changes what the file means. The journal keeps the
text with the shift, beside the text that the file held then. From then on the file means

- the shifted text, while the file is as it was when the shift was made;
- once somebody edits other lines of the file, the edit and the shift merged (a three-way merge by
  lines, as in ``diff3``);
- once somebody edits the lines that the shift changed, or removes what it shifted to, what the file
  holds: the newer decision wins.

A cluster does the same with a VirtualService whose weights a rollout controller writes: the
repository of manifests keeps the weights that people wrote, the API server has those in effect.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from merge3 import Merge3

from tidegate.mesh.control.configuration.journal import Journal, ShiftedText, TextChange

__all__ = ["ShiftedFiles", "merged"]


def merged(shifted: ShiftedText, file: str) -> str:
    """The text that a shifted file means now.

    Args:
        shifted: The text with the shift, and the text that the file held when the shift was made.
        file: The text that the file holds now.
    """
    if file == shifted.file:
        return shifted.text
    base, ours, theirs = (
        text.splitlines(keepends=True) for text in (shifted.file, shifted.text, file)
    )
    text = ""
    for region in Merge3(base, ours, theirs).merge_groups():
        if region[0] == "conflict":
            return file
        text += "".join(region[1])
    return text


class ShiftedFiles:
    """The files whose text a shift has changed.

    Args:
        journal: Keeps their texts.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        # The last merge of each file: a merge takes much longer than a comparison.
        self._merged: dict[Path, tuple[ShiftedText, str, str]] = {}

    @property
    def paths(self) -> Sequence[Path]:
        """The files whose text in effect differs from what they hold."""
        return list(self._journal.shifted())

    def text(self, path: Path, file: str | None) -> str | None:
        """The text that a file means.

        Args:
            path: The file.
            file: The text that it holds; ``None`` if it does not exist.
        """
        shifted = self._journal.shifted().get(path)
        return file if shifted is None or file is None else self._text(path, shifted, file)

    def file_in_effect(self, path: Path, text: str) -> str:
        """The text that a file held when its text in effect came into effect.

        Args:
            path: The file.
            text: The text in effect.
        """
        shifted = self._journal.shifted().get(path)
        return text if shifted is None else shifted.file

    def texts(self, files: Mapping[Path, str], without: Collection[Path] = ()) -> dict[Path, str]:
        """The texts that files mean.

        Args:
            files: The texts that they hold.
            without: Files whose shift is ignored.
        """
        texts = dict(files)
        for path, shifted in self._journal.shifted().items():
            if path in texts and path not in without:
                texts[path] = self._text(path, shifted, texts[path])
        return texts

    def lost_in(self, changes: Sequence[TextChange]) -> bool:
        """Whether a change ends a shift, because people edited the lines that it had changed."""
        shifted = self._journal.shifted()
        return any(each.path in shifted and not each.shifted for each in changes)

    def settle(self, files: Mapping[Path, str], applied: Mapping[Path, str]) -> None:
        """Forgets the shifts that people have written into their files, or whose file is gone.

        Args:
            files: The texts that the files hold.
            applied: The texts in effect.
        """
        for path, shifted in self._journal.shifted().items():
            file = files.get(path)
            if file is None:
                if path not in applied:
                    self._journal.keep(path, None)
            elif file != shifted.file and self._text(path, shifted, file) == applied.get(path):
                change = TextChange(path, None, applied[path], file)
                self._journal.keep(path, change.shifted)

    def _text(self, path: Path, shifted: ShiftedText, file: str) -> str:
        known = self._merged.get(path)
        if known is None or known[:2] != (shifted, file):
            known = self._merged[path] = (shifted, file, merged(shifted, file))
        return known[2]
