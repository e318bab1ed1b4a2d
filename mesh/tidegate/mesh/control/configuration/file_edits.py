"""Takes the edits of files: what people write, and the workloads that servers register.

A file that cannot be parsed holds all edits back, because an edit of two files is half done while
one of them is broken. An edit that could not be made is not tried again until one of its files is
saved again. Files of workloads take effect one by one, at once.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from tidegate.errors import TidegateError
from tidegate.mesh.control.configuration.applied import AppliedConfiguration, Differences
from tidegate.mesh.control.configuration.files import FilePoller
from tidegate.mesh.control.configuration.journal import TextChange
from tidegate.mesh.control.configuration.shifted_files import ShiftedFiles
from tidegate.mesh.control.endpoints.monitor import EndpointMonitor
from tidegate.mesh.control.errors import Problems, StateError
from tidegate.runtime.logging import get_logger

__all__ = ["FileEdits"]

_EDITS: Final = "edited files"
_STATE: Final = "state file"
_FOLLOWING: Final = "files"

_log = get_logger(__name__)


class FileEdits:
    """Follows the files of objects.

    Args:
        paths: Files and folders.
        applied: What is in effect.
        endpoints: Takes workloads.
        shifted: Gives the text in effect of shifted files.
        problems: Takes what is wrong.
        begin: Begins a change of the edits that are found; returns whether it could.
        settle_s: How long a file that holds less than before must stay unchanged.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        applied: AppliedConfiguration,
        endpoints: EndpointMonitor,
        shifted: ShiftedFiles,
        problems: Problems,
        begin: Callable[[], bool],
        settle_s: float = 0.0,
    ) -> None:
        self._files = FilePoller(paths, settle_s)
        self._applied = applied
        self._endpoints = endpoints
        self._shifted = shifted
        self._problems = problems
        self._begin = begin
        self._polling = asyncio.Lock()
        self._is_stale = True
        self._broken: frozenset[str] = frozenset()
        self._unread: frozenset[str] = frozenset()
        self._refused: frozenset[TextChange] = frozenset()

    def differences(self) -> Differences:
        """Polls the files, before anything runs, and compares them with what is in effect."""
        self._files.poll()
        return self._differences()

    async def poll_now(self) -> Differences:
        """Polls the files again, and compares them with what is in effect."""
        async with self._polling:
            await asyncio.to_thread(self._files.poll)
        return self._differences()

    def without_shifts(self, paths: Collection[Path]) -> Differences:
        """What the files, as last polled, would change if some of them were not shifted."""
        return self._differences(paths)

    def file(self, path: Path) -> str | None:
        """What a file held when it was last polled; ``None`` if it was not there."""
        return self._files.texts.get(path)

    def compare_again(self) -> None:
        """Has the files compared again, because something else is in effect."""
        self._is_stale = True

    def refuse(self, files: Sequence[TextChange], words: str) -> None:
        """Notes that an edit could not be made. It waits until one of its files is saved again."""
        self._refused = frozenset(files)
        self._problems.put(_EDITS, words)

    def postpone(self, words: str) -> None:
        """Notes that an edit could not be made yet. It is tried again."""
        self._problems.put(_EDITS, words)

    @property
    def unread(self) -> Mapping[Path, str]:
        """Why files cannot be read."""
        return self._files.problems

    async def follow(self, interval_s: float) -> None:
        """Takes edits, for ever.

        Args:
            interval_s: How often the files are polled.
        """
        fault = ""
        while True:
            try:
                await self._follow_once()
            # A fault here must not end the controller. It is logged once.
            except Exception as error:  # noqa: BLE001 - reported in the status
                words = f"a fault of the controller, see its log: {error!r}"
                if words != fault:
                    _log.exception("files cannot be followed")
                fault, self._is_stale = words, True
                self._problems.put(_FOLLOWING, words)
            else:
                fault = ""
                self._problems.clear(_FOLLOWING)
            await asyncio.sleep(interval_s)

    async def _follow_once(self) -> None:
        async with self._polling:
            saved = await asyncio.to_thread(self._files.poll)
        self._report_unread()
        if any(each.path in saved for each in self._refused):
            self._refused = frozenset()
        if saved or self._is_stale:
            self._is_stale = self._compare()

    def take_workloads(self, changes: Sequence[TextChange]) -> None:
        """Applies the files one by one, so that an error in one does not hold back the others."""
        for each in changes:
            source = f"workload {each.path}"
            try:
                self._endpoints.change(self._applied.edit([each]))
            except TidegateError as error:
                self._problems.put(source, f"is refused: {error}")
            else:
                self._applied.take([each])
                self._problems.clear(source)

    def _differences(self, without: Collection[Path] = ()) -> Differences:
        files = self._files.texts
        return self._applied.differences(self._shifted.texts(files, without), files)

    def _settle(self) -> bool:
        """Forgets shifts that people have written into the files.

        Returns:
            Whether the journal could write that.
        """
        try:
            self._shifted.settle(self._files.texts, self._applied.texts)
        except StateError as error:
            self._problems.put(_STATE, str(error))
            return False
        self._problems.clear(_STATE)
        return True

    def _report_unread(self) -> None:
        unread = {f"file {path}": words for path, words in self._files.problems.items()}
        for source in self._unread - unread.keys():
            self._problems.clear(source)
        self._unread = frozenset(unread)
        for source, words in unread.items():
            self._problems.put(source, f"{words}; what it held last stays in effect")

    def _compare(self) -> bool:
        """Applies workloads, and begins a change of the other differences.

        Returns:
            Whether the files have to be compared again soon.
        """
        found = self._differences()
        is_written = self._settle()
        broken = {str(path): words for path, words in found.broken.items()}
        for source in self._broken - broken.keys():
            self._problems.clear(source)
        self._broken = frozenset(broken)
        for source, words in broken.items():
            self._problems.put(source, f"is refused: {words}")
        self.take_workloads(found.workloads)
        if not found.config:
            self._refused = frozenset()
            self._problems.clear(_EDITS)
            return not is_written
        if broken or frozenset(found.config) == self._refused:
            return not is_written
        return not self._begin()
