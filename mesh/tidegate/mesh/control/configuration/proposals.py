"""Works out changes before they are made: which texts change, and how the mesh changes with them.

A shift and a split change what files mean, a reset makes each file mean what it holds again, and an
edit takes what people wrote. Nothing here is served or written.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tidegate.chassis.errors import FailedPrecondition
from tidegate.errors import TidegateError
from tidegate.istio import IstioObjects
from tidegate.istio.annotations import RolloutName
from tidegate.istio.editing.shifts import Shift, shift
from tidegate.istio.editing.splits import HostSplit, with_split
from tidegate.istio.editing.subsets import without_idle
from tidegate.mesh.control.configuration.applied import AppliedConfiguration
from tidegate.mesh.control.configuration.file_edits import FileEdits
from tidegate.mesh.control.configuration.files import text_of
from tidegate.mesh.control.configuration.journal import TextChange
from tidegate.mesh.control.configuration.ownership import refuse_if_owned, refuse_other_owner
from tidegate.mesh.control.configuration.shifted_files import ShiftedFiles
from tidegate.mesh.control.errors import ObjectsError
from tidegate.mesh.control.served_configuration import ProposedChange, ServedConfiguration

__all__ = ["ChangeProposer", "names_of"]


class ChangeProposer:
    """Works out changes.

    Args:
        applied: What is in effect.
        edits: Gives the files.
        shifted: Gives the text in effect of shifted files.
        served: Compiles the objects and plans the change.
    """

    def __init__(
        self,
        applied: AppliedConfiguration,
        edits: FileEdits,
        shifted: ShiftedFiles,
        served: ServedConfiguration,
    ) -> None:
        self._applied = applied
        self._edits = edits
        self._shifted = shifted
        self._served = served

    def propose(self, files: Sequence[TextChange]) -> ProposedChange:
        """Works out a change of texts.

        Raises:
            TidegateError: The change cannot be made.
        """
        objects = self._applied.edit(files)(self._served.objects)
        return self._served.propose(files, objects)

    def propose_shift(self, change: Shift, *, force: bool = False) -> ProposedChange:
        """Works out a shift.

        Args:
            change: The shift.
            force: Whether to shift although a rollout owns the traffic.

        Raises:
            FailedPrecondition: A file that the shift changes holds edits that are not in effect, or
                a rollout owns the traffic.
            TidegateError: The shift cannot be made.
        """
        before = self._applied.objects_of(change.host, self._served.objects)
        after = shift(before, change)
        if not force:
            refuse_if_owned(before, after, "shift")
        return self.propose(self._rewritten(before, after))

    def propose_split(
        self, host: str, split: HostSplit, owner: RolloutName | None
    ) -> ProposedChange:
        """Works out the change after which a host's requests are divided in a way.

        Args:
            host: The host, by its full name or its first label.
            split: The split.
            owner: The rollout that owns it from then on; None gives the host back.

        Raises:
            FailedPrecondition: Another rollout owns the traffic.
            TidegateError: The change cannot be made.
        """
        before = self._applied.objects_of(host, self._served.objects)
        after = with_split(before, host, split, owner)
        refuse_other_owner(before, after, owner)
        files = self._rewritten(before, after, keep_edits=True)
        if owner is None:
            files = tuple(map(self._given_back, files))
        return self.propose(files)

    def propose_reset(self, *, force: bool = False) -> ProposedChange:
        """Works out the change after which every file means what it held when last polled.

        Args:
            force: Whether to reset although a rollout owns traffic that this changes.

        Raises:
            FailedPrecondition: A rollout owns traffic that this changes.
            ObjectsError: A file has errors.
            TidegateError: The change cannot be made.
        """
        found = self._edits.without_shifts(self._shifted.paths)
        if found.broken:
            raise ObjectsError("\n".join(found.broken.values()))
        proposed = self.propose(found.config)
        if not force:
            refuse_if_owned(self._served.objects, proposed.objects, "reset")
        return proposed

    def propose_edits(self, files: Sequence[TextChange]) -> ProposedChange:
        """Works out an edit of files.

        A shift leaves destinations of weight 0 behind. If people remove the subset of such a
        destination, the destination goes too. A shift that contradicts the edit in another way is
        given up.

        Args:
            files: The files that mean something else than what is in effect.

        Raises:
            TidegateError: The edit cannot be made, neither with the shifts nor without them.
        """
        try:
            return self.propose(files)
        except TidegateError:
            shifted = self._shifted.paths
            with contextlib.suppress(TidegateError):
                return self.propose(self._without_idle(files))
            for given_up in [*([path] for path in shifted), *([shifted] * bool(shifted))]:
                with contextlib.suppress(TidegateError):
                    return self.propose(self._edits.without_shifts(given_up).config)
            raise

    def _rewritten(
        self, before: IstioObjects, after: IstioObjects, *, keep_edits: bool = False
    ) -> tuple[TextChange, ...]:
        """How the texts of files change so that their objects have other values.

        Args:
            before: The objects of a host in effect.
            after: The same objects, some of them with other values.
            keep_edits: Whether files may hold edits that are not in effect. They stay pending, and
                are merged with the change once they can take effect.

        Raises:
            FailedPrecondition: A file holds edits that are not in effect.
            EditError: The text of an object cannot be changed in place.
        """
        files = []
        for each in self._applied.rewritten(before, after):
            text = each.before.decode()
            try:
                file = self._file_in_effect(each.path, text)
            except FailedPrecondition:
                if not keep_edits:
                    raise
                file = self._shifted.file_in_effect(each.path, text)
            files.append(TextChange(each.path, text, each.after.decode(), file))
        return tuple(files)

    def _file_in_effect(self, path: Path, text: str) -> str:
        """What a file holds.

        Raises:
            FailedPrecondition: It cannot be read, or means something else than the text in effect.
        """
        try:
            file = text_of(path)
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(
                f"{path} cannot be read: {error}; mend it first",
                reason="FILE_NOT_IN_EFFECT",
                metadata={"file": str(path)},
            ) from error
        if file is None or self._shifted.text(path, file) != text:
            raise FailedPrecondition(
                f"{path} holds changes that are not in effect; see `tidegate mesh status`, mend or"
                " undo them first",
                reason="FILE_NOT_IN_EFFECT",
                metadata={"file": str(path)},
            )
        return file

    def _given_back(self, change: TextChange) -> TextChange:
        """A change after which its file is not shifted any more, if the file means the same."""
        if change.file is None or change.after is None:
            return change
        same = self._applied.mean_the_same(change.path, change.file, change.after)
        return replace(change, after=change.file) if same else change

    def _without_idle(self, files: Sequence[TextChange]) -> tuple[TextChange, ...]:
        """An edit without the idle destinations of shifts whose subset the edit removes."""
        edited = {each.path for each in files}
        texts = self._applied.texts
        others = tuple(
            TextChange(path, texts[path], texts[path], self._edits.file(path))
            for path in self._shifted.paths
            if path not in edited and path in texts
        )
        mesh = self._applied.edit(files)(self._served.objects)
        shifted = [each for each in (*files, *others) if each.shifted]
        pruned = self._applied.changed_further(shifted, lambda found: without_idle(found, mesh))
        kept = tuple(each for each in files if not each.shifted)
        return (*kept, *(each for each in pruned if each.before != each.after))


def names_of(files: Sequence[TextChange]) -> str:
    """The names of files, for messages."""
    return ", ".join(each.path.name for each in files)
