"""The vocabulary of the declarations: each message of Istio is one dataclass.

The parser, the writer and the tables of supported fields all read these declarations. A field's
name is Istio's in snake_case, and its type says how to read it. ``Annotated`` adds what a type
cannot say: a range, or that Istio wraps the value in a message with one field. A field of Istio
that Tidegate does not read is declared by its name alone, and its value is kept.
"""

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NewType

__all__ = [
    "AnyCase",
    "GatewayName",
    "HeaderName",
    "HostName",
    "Inside",
    "Label",
    "Message",
    "Positive",
    "Range",
    "Regex",
    "StringMatch",
    "StringMatchKind",
    "SubsetName",
]

HostName = NewType("HostName", str)
"""The full name of a host; the parser resolves short names as istiod does."""

SubsetName = NewType("SubsetName", str)
"""The name of a subset of a host's endpoints, from a DestinationRule."""

GatewayName = NewType("GatewayName", str)
"""``namespace/name`` of a Gateway, or the word ``mesh`` for every client inside the mesh."""

HeaderName = NewType("HeaderName", str)
"""An HTTP header in lower case."""

Regex = NewType("Regex", str)
"""A regular expression that RE2 accepts."""

Label = NewType("Label", str)
"""A name of 1 to 63 lower-case letters, digits and dashes (RFC 1123)."""


@dataclass(frozen=True, slots=True)
class Range:
    """The least and greatest value of a number, both included."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Positive:
    """A duration of at least this length, in whole milliseconds.

    Istio's own minimum is one millisecond.
    """

    minimum: dt.timedelta = dt.timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Inside:
    """Istio wraps the value in a message with this one field, such as ``port: {number: 80}``."""

    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Root of every declared message of Istio.

    Attributes:
        opaque: Fields that are kept as plain values and not read, by their names in YAML. An edit
            copies them with the message, and writing returns them unchanged.
    """

    OPAQUE: ClassVar[frozenset[str]] = frozenset()
    """Istio's fields that are kept as plain values and not read. The compiler refuses them."""

    opaque: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


class AnyCase(enum.Enum):
    """Root of enums whose values Istio accepts in any case of letters, such as a port's protocol.

    The values of members are in upper case.
    """


class StringMatchKind(enum.Enum):
    """How a condition compares a text."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """A condition on a text.

    Attributes:
        kind: How to compare it. ``PRESENT`` is Istio's empty ``{}``, only for headers and query
            parameters.
        value: The text to compare with; empty for ``PRESENT``.
    """

    kind: StringMatchKind
    value: str = ""

    def __str__(self) -> str:
        match self.kind:
            case StringMatchKind.EXACT:
                return f"is {self.value}"
            case StringMatchKind.PREFIX:
                return f"starts with {self.value}"
            case StringMatchKind.REGEX:
                return f"matches {self.value}"
            case StringMatchKind.PRESENT:
                return "is present"
