"""The commands of users that wait for the next step of their rollout."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tidegate.rollout.engine.inputs import Command
from tidegate.router.errors import LeavingError, RefusedError
from tidegate.router.registry import RolloutRecord

__all__ = ["UserCommand", "WaitingCommands", "stage_refusal"]


@dataclass(frozen=True, slots=True)
class UserCommand:
    """A command, and what the user saw who gave it.

    Attributes:
        command: The command.
        stage: The stage that it is for, from 1; None if it is for any.
        id: What names this command among all commands of the rollout, if it must not be carried out
            twice; it is written with the step that carries it out.
    """

    command: Command
    stage: int | None = None
    id: str = ""


class WaitingCommands:
    """The commands of one rollout, in the order in which they were given."""

    def __init__(self) -> None:
        self._commands: deque[tuple[UserCommand, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, command: UserCommand) -> asyncio.Future[None]:
        """Adds a command; the future is done once it is written, or has its error."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commands.append((command, done))
        return done

    @contextlib.contextmanager
    def next(self, refusal: Callable[[UserCommand], str]) -> Iterator[UserCommand | None]:
        """Gives the next command that is not refused, and None if there is none.

        Whoever gave the command gets its answer when the context closes: it is written, or the
        error of the context. Commands that are refused before it get that answer at once.

        Args:
            refusal: Says why a command cannot be carried out now; empty if it can.
        """
        found = self._take(refusal)
        if found is None:
            yield None
            return
        command, done = found
        try:
            yield command
        except asyncio.CancelledError:
            # Nobody knows whether it was written.
            _fail(done, LeavingError("the router is shutting down; look at the rollout again"))
            raise
        except Exception as error:
            _fail(done, error)
            raise
        if not done.done():
            done.set_result(None)

    def refuse_all(self, error: Exception) -> None:
        """Answers every command with an error."""
        while self._commands:
            _fail(self._commands.popleft()[1], error)

    def _take(
        self, refusal: Callable[[UserCommand], str]
    ) -> tuple[UserCommand, asyncio.Future[None]] | None:
        while self._commands:
            command, done = self._commands.popleft()
            words = refusal(command)
            if not words:
                return command, done
            _fail(done, RefusedError(words))
        return None


def stage_refusal(record: RolloutRecord, stage: int | None) -> str:
    """Returns why a command for a stage comes too late; empty if it does not.

    Args:
        record: The rollout.
        stage: The stage that the user saw, from 1; None if the command is for any.
    """
    status = record.status
    now = status.stage + 1 if status.started_s is not None else 0
    if stage is None or stage == now:
        return ""
    return (
        f"{record.rollout.metadata.name} is at stage {now} by now, and the command is for stage"
        f" {stage}; look at it again (`tidegate rollout get`) and repeat the command if you still"
        " want it"
    )


def _fail(done: "asyncio.Future[None]", error: Exception) -> None:
    # Whoever gave the command may have left.
    if not done.done():
        done.set_exception(error)
