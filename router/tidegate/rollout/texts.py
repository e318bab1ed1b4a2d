"""Texts without control characters.

A terminal obeys control characters: it changes its title, clears itself, or takes the next words
for its own. Reasons, and errors of other programs, come from people who should not do that to the
readers of a history. So the router takes them out, and the command line does again, which may talk
to an older router.
"""

from typing import Any, Final, TypeVar

from google.protobuf.message import Message

__all__ = ["escaped", "escaped_message", "one_line"]

_Sent = TypeVar("_Sent", bound=Message)

# C0 but tabs and ends of lines, DEL, and C1.
_CONTROL: Final = (*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0))
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in _CONTROL}


def escaped(text: str) -> str:
    r"""Returns a text with its control characters as ``\x1b``; tabs and ends of lines stay."""
    return text.translate(_ESCAPES)


def one_line(text: str) -> str:
    r"""Returns a text as one line, with its control characters as ``\x1b``."""
    return escaped(" ".join(text.split()))


def escaped_message(message: _Sent) -> _Sent:
    """Returns a message with every text `escaped`, also in the messages that it holds."""
    copy = type(message)()
    copy.CopyFrom(message)
    _escape(copy)
    return copy


def _escape(message: Message) -> None:
    for field, value in message.ListFields():
        if isinstance(value, str):
            setattr(message, field.name, escaped(value))
        elif isinstance(value, Message):
            _escape(value)
        elif hasattr(value, "items"):
            _escape_map(value)
        elif field.message_type is not None:
            for each in value:
                _escape(each)
        elif field.type == field.TYPE_STRING:
            value[:] = [escaped(each) for each in value]


def _escape_map(value: Any) -> None:
    """The maps of rollouts have texts and numbers."""
    changed = {_plain(name): _plain(each) for name, each in value.items()}
    value.clear()
    value.update(changed)


def _plain(value: Any) -> Any:
    return escaped(value) if isinstance(value, str) else value
