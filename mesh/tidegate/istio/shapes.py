"""The vocabulary in which the messages of Istio are declared: one dataclass each.

The parser, the writer and the table of supported fields all read these declarations, so what is
declared is what is parsed and what is documented. A field's name is Istio's in snake_case, its type
says how it is read, and ``Annotated`` adds what a type cannot say: a range, or that Istio wraps the
value in a message of one field. What Istio has and Tidegate has not is declared too, by name, with
the reason, so that nothing is dropped in silence.
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
"""A host by its full name; what was short in YAML is resolved as istiod does it."""

SubsetName = NewType("SubsetName", str)
"""A subset of a host's endpoints, as a DestinationRule names it."""

GatewayName = NewType("GatewayName", str)
"""``namespace/name`` of a Gateway, or the word ``mesh`` for every client inside the mesh."""

HeaderName = NewType("HeaderName", str)
"""An HTTP header in lower case."""

Regex = NewType("Regex", str)
"""A regular expression that RE2 takes."""

Label = NewType("Label", str)
"""A name of 1-63 lower-case letters, digits and dashes (RFC 1123)."""


@dataclass(frozen=True, slots=True)
class Range:
    """Least and greatest value of a number, both included."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Positive:
    """A duration has to be at least this long, in whole milliseconds.

    Istio's own least is one millisecond.
    """

    minimum: dt.timedelta = dt.timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Inside:
    """Istio wraps the value in a message with this one field, such as ``port: {number: 80}``."""

    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Root of every message of Istio that is declared here.

    Attributes:
        opaque: Fields that are kept as plain values and not read, by their names in YAML. An edit
            copies them with the message, and writing returns them as they were.
    """

    OPAQUE: ClassVar[frozenset[str]] = frozenset()
    """Istio's fields that are kept as plain values and not read. The compiler refuses them."""

    opaque: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


class AnyCase(enum.Enum):
    """Root of words that Istio takes in any case of letters, such as the protocol of a port.

    The values of members are in upper case.
    """


class StringMatchKind(enum.Enum):
    """How a text is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """A condition on a text.

    Attributes:
        kind: how it is compared; ``PRESENT`` is Istio's empty ``{}``, only for headers and
            query parameters.
        value: what it is compared with; empty for ``PRESENT``.
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
