"""Texts with a meaning: durations as Go writes them, expressions that RE2 takes, names."""

import datetime as dt
import ipaddress
import re

__all__ = [
    "duration_text",
    "is_header_name",
    "is_ip_address",
    "is_label",
    "is_subdomain",
    "parse_duration",
    "regex_problem",
]

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"
_DURATION = re.compile(f"(?:{_PART})+")
_HEADER = re.compile(r":(method|scheme|authority|path)|[a-z0-9_-]+")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

# What Python's expressions have and RE2 does not.
_NOT_RE2 = (
    (re.compile(r"\(\?<?[=!]"), "looking ahead or behind"),
    (re.compile(r"\(\?P=|\\[1-9]"), "references back to a group"),
    (re.compile(r"\(\?\("), "conditions on a group"),
    (re.compile(r"\(\?>|(?<!\\)[*+?}]\+"), "possessive and atomic groups"),
    (re.compile(r"\(\?#"), "comments"),
    (re.compile(r"\\Z"), "\\Z; write \\z"),
)
# What RE2 has and Python does not, in words that Python takes; only syntax is compared.
_ONLY_RE2 = (
    (re.compile(r"\\z"), r"\\Z"),
    (re.compile(r"\\[pP](?:\{\^?\w+\}|\w)"), "x"),
    (re.compile(r"\[:\^?\w+:\]"), "x"),
    (re.compile(r"\(\?<(?=\w)"), "(?P<"),
    (re.compile(r"\(\?[imsU]*U[imsU]*(?=[:)])"), "(?i"),
    (re.compile(r"\\Q.*?(?:\\E|$)"), "x"),
    (re.compile(r"\\C"), "."),
    (re.compile(r"\\x\{[0-9a-fA-F]+\}"), "x"),
)
_CLASS = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]")
_MOST_REPEATS = 1000


def parse_duration(text: str) -> dt.timedelta | None:
    """A duration such as ``1.5s``, ``100ms`` or ``1h30m``; None where it is not one."""
    if text == "0":
        return dt.timedelta()
    if not _DURATION.fullmatch(text):
        return None
    try:
        return dt.timedelta(
            seconds=sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, text))
        )
    except OverflowError:
        return None


def duration_text(duration: dt.timedelta) -> str:
    """A duration as it is written in YAML: ``250ms``, ``1.5s``, ``90s``."""
    seconds = duration.total_seconds()
    if 0 < seconds < 1:
        return f"{seconds * 1000:.6g}ms"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def regex_problem(expression: str) -> str | None:
    """Why RE2 would not take an expression; None where it would.

    Python's own parser judges the syntax that both share.
    """
    if not expression:
        return "is empty"
    # An escaped backslash would make what follows it look escaped.
    plain = expression.replace("\\\\", "x")
    outside_classes = _CLASS.sub("x", plain)
    for pattern, name in _NOT_RE2:
        if pattern.search(outside_classes):
            return f"is not RE2, which has no {name}"
    for bounds in re.findall(r"\{(\d+)(?:,(\d*))?\}", outside_classes):
        if any(bound and int(bound) > _MOST_REPEATS for bound in bounds):
            return f"is not RE2, which repeats at most {_MOST_REPEATS} times"
    for pattern, stand_in in _ONLY_RE2:
        plain = pattern.sub(stand_in, plain)
    try:
        re.compile(plain)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression: {error}"
    return None


def is_label(text: str) -> bool:
    """Whether a text is a DNS label (RFC 1123)."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str, *, wildcard: bool = False) -> bool:
    """Whether a text is a DNS name; with a ``*`` as its first label where that is allowed."""
    if wildcard and text.startswith("*."):
        text = text[2:]
    return len(text) <= 253 and all(map(is_label, text.split(".")))


def is_header_name(name: str) -> bool:
    """Whether a text is a header in lower case, or one of HTTP/2's for requests."""
    return _HEADER.fullmatch(name) is not None


def is_ip_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
