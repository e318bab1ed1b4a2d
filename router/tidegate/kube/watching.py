"""What a watch sends: one JSON object a line, cut into chunks anywhere."""

import enum
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec

from tidegate.kube.errors import ServerStatus, UnreachableError, error_of
from tidegate.kube.resources import KubeObject, Resource

__all__ = ["EventType", "LineSplitter", "WatchDecoder", "WatchEvent"]

T = TypeVar("T", bound=KubeObject)

_INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"


class EventType(enum.Enum):
    """What happened to an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


class WatchEvent(msgspec.Struct, Generic[T], frozen=True):
    """One event of a watch.

    Attributes:
        type: What happened; a watch raises its `ERROR` events instead of giving them.
        object: The object; of a bookmark only the resource version counts.
    """

    type: EventType
    object: T

    @property
    def resource_version(self) -> str:
        """The version that the watch has reached with this event."""
        return self.object.metadata.resource_version

    @property
    def ends_initial_events(self) -> bool:
        """Whether a streaming list is complete with this bookmark."""
        annotations = self.object.metadata.annotations
        return self.type is EventType.BOOKMARK and annotations.get(_INITIAL_EVENTS_END) == "true"


class LineSplitter:
    """Cuts chunks of bytes into lines. Lines may be of any length."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def lines(self, chunk: bytes) -> Iterator[bytes]:
        """Takes the next chunk, and gives the lines that it completes, without their ends."""
        *ended, rest = chunk.split(b"\n")
        for each in ended:
            self._parts.append(each)
            line = b"".join(self._parts)
            self._parts.clear()
            if line.strip():
                yield line
        if rest:
            self._parts.append(rest)

    @property
    def is_within_line(self) -> bool:
        """Whether the chunks so far end in the middle of a line."""
        return bool(b"".join(self._parts).strip())


class _RawEvent(msgspec.Struct):
    type: EventType
    object: msgspec.Raw


_EVENT: Final = msgspec.json.Decoder(_RawEvent)
_STATUS: Final = msgspec.json.Decoder(ServerStatus)


class WatchDecoder(Generic[T]):
    """Decodes the lines of a watch.

    Args:
        resource: The resource that is watched.
        doing: The watch in words, for errors.
    """

    def __init__(self, resource: Resource[T], doing: str) -> None:
        self._object = msgspec.json.Decoder(resource.object_type)
        self._doing = doing

    def event(self, line: bytes) -> WatchEvent[T]:
        """Decodes a line.

        Raises:
            KubeError: The server ends the watch by an `ERROR` event, `GoneError` for instance, or
                the line is unreadable.
        """
        try:
            raw = _EVENT.decode(line)
            if raw.type is EventType.ERROR:
                raise error_of(_STATUS.decode(raw.object), self._doing)
            return WatchEvent(raw.type, self._object.decode(raw.object))
        except msgspec.DecodeError as error:
            raise UnreachableError(
                self._doing, f"the server sent an unreadable event: {error}"
            ) from error
