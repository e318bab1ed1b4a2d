"""Commands of users in an annotation, for clusters, where nobody calls the router itself.

The annotation `tidegate.dev/command` holds one command as JSON:

    {"id": "3f0c…", "kind": "promote", "reason": "looks good", "stage": 2}

The controller carries it out once and answers in `status.lastCommand` with the same id. A
command with another id takes its place. Text that is no command is answered too.
"""

import enum
import json
from typing import Annotated, Any, Final

import msgspec

from tidegate.rollout.engine.inputs import Command, CommandKind
from tidegate.rollout.texts import one_line

__all__ = [
    "COMMAND_ANNOTATION",
    "MOST_WORDS",
    "CommandAnswer",
    "CommandError",
    "CommandWord",
    "RolloutCommand",
    "command_text",
    "read_command",
]

COMMAND_ANNOTATION: Final = "tidegate.dev/command"
MOST_WORDS: Final = 1024
"""The largest length of a reason and of an answer, in characters."""

_MOST_ID: Final = 64
_MOST_SHOWN: Final = 200


class CommandWord(enum.StrEnum):
    """The kinds of commands, as the annotation has them."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    PROMOTE_FULL = "promote-full"
    ABORT = "abort"
    RETRY = "retry"
    UNDO = "undo"
    UNDO_FORCE = "undo-force"

    @property
    def kind(self) -> CommandKind:
        """The command of the engine."""
        return CommandKind[self.name]


class RolloutCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command.

    Attributes:
        id: Tells it from other commands; a new one for each.
        kind: What to do.
        reason: Why, in the user's words.
        stage: The stage that it is for, from 1; None if it is for any.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=_MOST_ID)]
    kind: CommandWord
    reason: Annotated[str, msgspec.Meta(max_length=MOST_WORDS)] = ""
    stage: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def command(self) -> Command:
        """The command as the engine takes it."""
        return Command(kind=self.kind.kind, reason=one_line(self.reason))


class CommandAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command.

    Attributes:
        id: The command's id; empty if it has none.
        accepted: Whether it is carried out.
        message: Why not, and what to do instead; empty if it is.
    """

    id: str
    accepted: bool
    message: str = ""


class CommandError(ValueError):
    """An annotation holds no command.

    Attributes:
        id: The id in it, for the answer; empty if none can be read.
    """

    def __init__(self, problem: str, id_: str = "") -> None:
        super().__init__(problem)
        self.id = id_

    @property
    def answer(self) -> CommandAnswer:
        """The answer to the annotation."""
        return CommandAnswer(id=self.id, accepted=False, message=str(self)[:MOST_WORDS])


def read_command(text: str) -> RolloutCommand:
    """Reads the annotation.

    Raises:
        CommandError: It holds no command. The message names the field, the problem and the fix.
    """
    try:
        return msgspec.json.decode(text, type=RolloutCommand)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CommandError(
            f"the annotation {COMMAND_ANNOTATION} holds no command: {error}; write"
            f' {{"id": "1", "kind": "{"|".join(CommandWord)}", "reason": "", "stage": 2}},'
            f" stage only where it matters; it is {text[:_MOST_SHOWN]!r}",
            _id_of(text),
        ) from error


def command_text(command: RolloutCommand) -> str:
    """Returns the annotation of a command."""
    return msgspec.json.encode(command).decode()


def _id_of(text: str) -> str:
    """Returns the id in a wrong command, so that whoever wrote it finds the answer."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    given = found.get("id", "") if isinstance(found, dict) else ""
    return given[:_MOST_ID] if isinstance(given, str) else ""
