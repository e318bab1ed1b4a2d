"""What commands changed in files of objects, kept apart from the files that people write.

A shift changes what a file means and not the file: the text with the shift is kept in the journal,
beside the text of the file that it was made from. What a file means, its *shifted text*, is then

- the kept text, while the file is as it was when the shift was made;
- once somebody edits other lines of the file, the edit and the shift merged (a three-way merge by
  lines, as in ``diff3``);
- once somebody edits the lines that the shift changed, or removes what it shifted to, the file: the
  newer decision holds.

This is what a cluster does with a VirtualService whose weights a rollout controller writes: the
repository of manifests keeps the weights that people wrote, the API server has those in effect.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from merge3 import Merge3

from tidegate.mesh.control.configuration.journal import Journal, ShiftedText, TextChange

__all__ = ["ShiftedFiles", "merged"]


def merged(shifted: ShiftedText, file: str) -> str:
    """What a file means whose text was shifted once.

    Args:
        shifted: the text with the shift, and what the file held when the shift was made.
        file: what the file holds now.
    """
    if file == shifted.file:
        return shifted.text
    lines = [text.splitlines(keepends=True) for text in (shifted.file, shifted.text, file)]
    regions = list(Merge3(*lines).merge_groups())
    if any(region[0] == "conflict" for region in regions):
        return file
    return "".join(line for _, found in regions for line in found)


class ShiftedFiles:
    """The files that were shifted.

    Args:
        journal: keeps their texts.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        # Of each file, what was merged last: a merge takes long beside a comparison.
        self._merged: dict[Path, tuple[ShiftedText, str, str]] = {}

    @property
    def paths(self) -> Sequence[Path]:
        """The files whose text in effect is not their own."""
        return list(self._journal.shifted())

    def text(self, path: Path, file: str | None) -> str | None:
        """What a file means.

        Args:
            path: the file.
            file: what it holds; ``None`` when it is not there.
        """
        shifted = self._journal.shifted().get(path)
        return file if shifted is None or file is None else self._text(path, shifted, file)

    def texts(self, files: Mapping[Path, str], without: Collection[Path] = ()) -> dict[Path, str]:
        """What files mean.

        Args:
            files: what they hold.
            without: files whose shift does not count.
        """
        texts = dict(files)
        for path, shifted in self._journal.shifted().items():
            if path in texts and path not in without:
                texts[path] = self._text(path, shifted, texts[path])
        return texts

    def lost_in(self, changes: Sequence[TextChange]) -> bool:
        """Whether a shift ends with a change, because people edited what it had changed."""
        shifted = self._journal.shifted()
        return any(each.path in shifted and not each.shifted for each in changes)

    def settle(self, files: Mapping[Path, str], effective: Mapping[Path, str]) -> None:
        """Forgets the shifts that people have written into their files, or whose file is gone.

        Args:
            files: what the files hold.
            effective: what is in effect.
        """
        for path, shifted in self._journal.shifted().items():
            file = files.get(path)
            if file is None:
                if path not in effective:
                    self._journal.keep(path, None)
            elif file != shifted.file and self._text(path, shifted, file) == effective.get(path):
                change = TextChange(path, None, effective[path], file)
                self._journal.keep(path, change.shifted)

    def _text(self, path: Path, shifted: ShiftedText, file: str) -> str:
        known = self._merged.get(path)
        if known is None or known[:2] != (shifted, file):
            known = self._merged[path] = (shifted, file, merged(shifted, file))
        return known[2]
