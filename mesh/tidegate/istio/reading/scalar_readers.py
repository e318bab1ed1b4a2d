"""Scalar readers: they read texts, numbers, durations, names and conditions from single YAML nodes.

A reader takes a node and returns a value. Where the node is wrong, it adds a problem and returns
``NOTHING``.
"""

import datetime as dt
import difflib
import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from tidegate.istio.expressions import regex_problem
from tidegate.istio.names import full_gateway_name, full_host_name
from tidegate.istio.reading.nodes import entries, is_null, kind_of, line_of, number_of, truth_of
from tidegate.istio.scalars import (
    is_header_name,
    is_host_label,
    is_ip_address,
    is_subdomain,
    parse_duration,
)
from tidegate.istio.shapes import (
    GatewayName,
    HeaderName,
    HostName,
    Label,
    Regex,
    StringMatch,
    StringMatchKind,
    SubsetName,
)

__all__ = [
    "NOTHING",
    "SCALAR_READERS",
    "Read",
    "Reading",
    "join",
    "meant",
    "read_key",
    "read_optional_match",
    "wrong_kind",
]


class Nothing(enum.Enum):
    """The result of a reader that could not read its node."""

    NOTHING = enum.auto()


NOTHING = Nothing.NOTHING
Read = Callable[[Node, str, "Reading"], Any]
"""Takes a node, its path and the collected problems; returns a value or ``NOTHING``."""


@dataclass(slots=True)
class Reading:
    """The state of reading one object.

    Attributes:
        namespace: The object's namespace, for short names.
        validated: Whether an API server has validated the object. Then a value that cannot be read
            is kept unchanged.
        refused_values: Values of enums that the object's user refuses; no fix names them.
        problems: The line, path, problem and fix of each problem so far.
    """

    namespace: str
    validated: bool = False
    refused_values: Mapping[type[enum.Enum], Collection[str]] = field(default_factory=dict)
    problems: list[tuple[int, str, str, str]] = field(default_factory=list)

    def refuse(self, node: Node, path: str, problem: str, fix: str) -> Any:
        """Adds a problem; returns ``NOTHING``."""
        self.problems.append((line_of(node), path, problem, fix))
        return NOTHING

    def known(self, kind: type[enum.Enum]) -> list[str]:
        """Returns the values of an enum that a fix may name."""
        refused = self.refused_values.get(kind, ())
        return [str(member.value) for member in kind if member.value not in refused]

    def doubt(self, value: Any, node: Node, path: str, problem: str, fix: str) -> Any:
        """Refuses a value of the right type, unless an API server has validated it."""
        return value if self.validated else self.refuse(node, path, problem, fix)


def meant(word: str, known: Iterable[str]) -> str:
    """Returns a fix that suggests the closest known word, or else all of them."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known are {', '.join(words)}" if words else "remove it"


def wrong_kind(node: Node, path: str, reading: Reading, wanted: str) -> Any:
    """Refuses a node of the wrong kind."""
    got = f"{kind_of(node)} {node.value!r}" if isinstance(node, ScalarNode) else kind_of(node)
    return reading.refuse(node, path, f"is {got}", f"must be {wanted}")


def join(path: str, key: str) -> str:
    """Returns the path of a key. A key with a dot, slash or bracket gets brackets."""
    if any(character in key for character in "./["):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _read_text(node: Node, path: str, reading: Reading) -> Any:
    if not isinstance(node, ScalarNode):
        return wrong_kind(node, path, reading, "text")
    if kind_of(node) == "text":
        return str(node.value)
    return reading.refuse(
        node, path, f"must be text, not {kind_of(node)}", f"quote it: '{node.value}'"
    )


def read_key(read: Read, node: Node, path: str, reading: Reading) -> Any:
    """Reads a key of a mapping.

    Keys of JSON are texts: Kubernetes' parser makes a text of a number (``1``), in its own format.
    """
    if isinstance(node, ScalarNode) and str(number_of(node)) == node.value:
        node = ScalarNode("tag:yaml.org,2002:str", node.value, node.start_mark, node.end_mark)
    return read(node, path, reading)


def _read_int(node: Node, path: str, reading: Reading) -> Any:
    number = number_of(node)
    return number if isinstance(number, int) else wrong_kind(node, path, reading, "a whole number")


def _read_float(node: Node, path: str, reading: Reading) -> Any:
    number = number_of(node)
    try:
        return wrong_kind(node, path, reading, "a number") if number is None else float(number)
    except OverflowError:
        return reading.refuse(node, path, "is too large a number", "write a smaller one")


def _read_bool(node: Node, path: str, reading: Reading) -> Any:
    truth = truth_of(node)
    return wrong_kind(node, path, reading, "true or false") if truth is None else truth


def _read_duration(node: Node, path: str, reading: Reading) -> Any:
    if isinstance(node, ScalarNode) and kind_of(node) == "text":
        duration = parse_duration(str(node.value))
        if duration is not None:
            return duration
        return reading.refuse(
            node, path, f"{node.value!r} is not a duration", "write it like 1.5s, 250ms or 2m"
        )
    return wrong_kind(node, path, reading, "a duration such as 1.5s")


def _read_string_match(node: Node, path: str, reading: Reading) -> Any:
    if not isinstance(node, MappingNode):
        example = f"{{exact: {node.value}}}" if isinstance(node, ScalarNode) else "{exact: TEXT}"
        return reading.refuse(node, path, f"must be a condition, not {kind_of(node)}", example)
    kinds = [kind.value for kind in StringMatchKind if kind is not StringMatchKind.PRESENT]
    found, _ = entries(node)
    if len(found) > 1:
        # Kubernetes ignores a key without a value.
        found = {key: pair for key, pair in found.items() if not is_null(pair[1])} or found
    unknown = [key for key in found if key not in kinds]
    for key in unknown:
        reading.refuse(found[key][0], join(path, key), "is not a condition", meant(key, kinds))
    if unknown:
        return NOTHING
    if len(found) != 1:
        return reading.refuse(
            node, path, f"has {len(found)} conditions", "write one of exact, prefix and regex"
        )
    ((kind, (_, value_node)),) = found.items()
    place = join(path, kind)
    value = SCALAR_READERS[Regex if kind == "regex" else str](value_node, place, reading)
    if value == "":
        return reading.refuse(value_node, place, "is empty", "write what is to match")
    return value if value is NOTHING else StringMatch(StringMatchKind(kind), value)


def read_optional_match(node: Node, path: str, reading: Reading) -> Any:
    """Reads a condition on a header or query parameter, which may also match any value."""
    if is_null(node) or (isinstance(node, MappingNode) and not node.value):
        return StringMatch(StringMatchKind.PRESENT)
    return _read_string_match(node, path, reading)


def _checked(
    check: Callable[[str], bool], problem: str, fix: str
) -> Callable[[Node, str, Reading], Any]:
    def read(node: Node, path: str, reading: Reading) -> Any:
        text = _read_text(node, path, reading)
        if text is NOTHING or text == "" or check(text):
            return text
        return reading.doubt(text, node, path, f"{text!r} {problem}", fix)

    return read


def _read_regex(node: Node, path: str, reading: Reading) -> Any:
    text = _read_text(node, path, reading)
    problem = None if text is NOTHING else regex_problem(text)
    if problem is None:
        return text
    fix = "write '.*', or {} to match presence" if text == "*" else "write an RE2 expression"
    return reading.doubt(text, node, path, f"{text!r} {problem}", fix)


def _read_host(node: Node, path: str, reading: Reading) -> Any:
    text = _read_text(node, path, reading)
    if text is NOTHING or text == "":
        return text
    full = full_host_name(text, reading.namespace)
    if full == "*" or is_subdomain(full, wildcard=True) or _is_ipv4_address(full):
        return full
    for unusual, problem, fix in _UNUSUAL_HOSTS:
        if unusual(text):
            return reading.doubt(full, node, path, f"{text!r} is not supported: {problem}", fix)
    fix = "write a name such as vision.models.svc.cluster.local"
    return reading.doubt(full, node, path, f"{text!r} is not a host", fix)


def _is_ipv4_address(text: str) -> bool:
    return is_ip_address(text) and ":" not in text


# Hosts that Istio accepts and Tidegate does not, with the reason and the fix.
_UNUSUAL_HOSTS: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (
        lambda text: is_subdomain(text.removesuffix(".")),
        "a name is the same without the dot at its end",
        "remove the dot",
    ),
    (
        lambda text: text.startswith("*") and is_subdomain(text.lstrip("*-")),
        "a wildcard stands for whole labels",
        "write it like *.example.com",
    ),
    (is_ip_address, "hosts are names or IPv4 addresses", "name the host"),
)


def _read_gateway(node: Node, path: str, reading: Reading) -> Any:
    text = _read_text(node, path, reading)
    if text is NOTHING:
        return text
    where, slash, name = text.partition("/")
    full = full_gateway_name(text, reading.namespace)
    if (is_host_label(where) and is_host_label(name)) if slash else is_subdomain(text):
        return full
    fix = "write its name, namespace/name, or mesh"
    return reading.doubt(full, node, path, f"{text!r} is not a gateway", fix)


def _read_header(node: Node, path: str, reading: Reading) -> Any:
    """Reads a header name. HTTP ignores its case, and HTTP/2 has lower case only."""
    text = _read_text(node, path, reading)
    if text is NOTHING or is_header_name(text.lower()):
        return text if text is NOTHING else text.lower()
    if text.lower().startswith("@request.auth.claims"):
        problem = "is not supported: claims of tokens are not read"
        return reading.doubt(text, node, path, problem, "let clients send a header")
    fix = "write it like x-user-tier"
    return reading.doubt(text.lower(), node, path, f"{text!r} is not a header", fix)


SCALAR_READERS: Mapping[Any, Read] = {
    str: _read_text,
    int: _read_int,
    float: _read_float,
    bool: _read_bool,
    dt.timedelta: _read_duration,
    StringMatch: _read_string_match,
    Regex: _read_regex,
    HostName: _read_host,
    GatewayName: _read_gateway,
    SubsetName: _checked(
        is_host_label, "is not a subset name", "use letters, 0-9 and -, at most 63"
    ),
    Label: _checked(is_host_label, "is not a label", "use letters, 0-9 and -, at most 63"),
    HeaderName: _read_header,
}
