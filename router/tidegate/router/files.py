"""Rollouts in files: a saved file is applied as by a call.

A file with faults is reported with file and line, and the rollouts that it held go on as they are;
the other files are applied. A rollout whose file is gone goes on too, because a deleted file is a
poor reason to move traffic. That is reported until somebody aborts the rollout or it ends.

A file counts when it changes. If somebody changes a rollout by a call, that holds until the file is
saved with something else in it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tidegate.errors import TidegateError
from tidegate.mesh.control.configuration.files import FilePoller
from tidegate.rollout.spec.faults import Fault, SpecError
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.router.errors import StoreError
from tidegate.router.reconciler import Reconciler
from tidegate.router.sources.source import UnsupportedError
from tidegate.runtime.logging import get_logger

__all__ = ["RolloutFiles"]

_log = get_logger(__name__)


# A file that holds less than before may be half written, and its first half may be a rollout too.
_SETTLE_S: Final = 1.0


class RolloutFiles:
    """The files of rollouts.

    Args:
        paths: Files and folders of YAML files.
        reconciler: Applies the rollouts.
    """

    def __init__(self, paths: Sequence[Path], reconciler: Reconciler) -> None:
        self._poller = FilePoller(paths, _SETTLE_S)
        self._reconciler = reconciler
        self._problems: dict[str, str] = {}
        # What is wrong with the texts of the files, as they were last read.
        self._faults: dict[str, str] = {}
        # The file of each rollout that a file without faults holds.
        self._files: dict[str, str] = {}
        self._is_stale = True

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong, by file; replaced at each poll."""
        return self._problems

    async def follow(self, interval_s: float) -> None:
        """Applies the files whenever they change, until the task is cancelled.

        Args:
            interval_s: How often the files are polled.
        """
        while True:
            try:
                await self.poll()
            # A fault here must not end the router.
            except Exception as error:  # noqa: BLE001 - reported in the list of rollouts
                words = f"a fault of the router, see its log: {error!r}"
                if self._problems.get("") != words:
                    _log.exception("files cannot be followed")
                self._problems, self._is_stale = self._problems | {"": words}, True
            await asyncio.sleep(interval_s)

    async def poll(self) -> None:
        """Looks at the files once, and applies those that have changed."""
        saved = await asyncio.to_thread(self._poller.poll)
        if saved or self._is_stale:
            self._is_stale = False
            await self._apply()
        problems = self._faults | {
            str(path): words for path, words in self._poller.problems.items()
        }
        await self._note_gone(problems)
        self._report(problems)

    async def _apply(self) -> None:
        self._faults, self._files = {}, {}
        for path, text in self._poller.texts.items():
            file = str(path)
            try:
                for rollout in read_rollouts(text, file):
                    await self._apply_one(rollout, file)
            except TidegateError as error:
                self._faults[file] = str(error)
                # Faults wait for an edit of the file; anything else may pass by itself.
                self._is_stale |= not isinstance(error, SpecError | UnsupportedError)

    async def _apply_one(self, rollout: Rollout, file: str) -> None:
        first = self._files.setdefault(rollout.key, file)
        if first != file:
            words = f"{rollout.key} is already defined in {first}; give one another name"
            raise SpecError([Fault("metadata.name", words, file)])
        await self._reconciler.apply(rollout, file)

    async def _note_gone(self, problems: dict[str, str]) -> None:
        """Reports rollouts that run and whose file does not hold them any more."""
        for record in self._reconciler.registry:
            file = record.file
            if not file or file in problems or self._files.get(record.key) == file:
                continue
            if record.has_ended:
                try:
                    await self._reconciler.left_by_file(record.key)
                except StoreError as error:
                    problems[file] = f"does not hold {record.key} any more: {error}"
                continue
            problems[file] = (
                f"does not hold {record.key} any more, which is {record.status.phase.value} and"
                " goes on; abort it (`tidegate rollout abort`), or put it back"
            )

    def _report(self, problems: dict[str, str]) -> None:
        for file, words in problems.items():
            if self._problems.get(file) != words:
                _log.warning("problem of a file", file=file, problem=words)
        self._problems = problems
