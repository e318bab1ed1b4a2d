"""Text formats: durations as Go writes them, and the names of Kubernetes, DNS and HTTP."""

import datetime as dt
import ipaddress
import math
import re
from fractions import Fraction

__all__ = [
    "duration_text",
    "is_cookie_name",
    "is_cookie_value",
    "is_header_name",
    "is_host_label",
    "is_ip_address",
    "is_label",
    "is_label_name",
    "is_label_value",
    "is_object_name",
    "is_subdomain",
    "is_time",
    "parse_duration",
    "parse_nanoseconds",
]

_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 24 * 3600 * 10**9,
}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)"
_DURATION = re.compile(rf"\+?(?:{_PART})+", re.ASCII)
# Go keeps a duration in 64 bits.
_LONGEST_NS = 2**63 - 1
# HTTP's tokens (RFC 9110, section 5.6.2), in lower case.
_HEADER = re.compile(r":(method|scheme|authority|path)|[a-z0-9!#$%&'*+.^_`|~-]+")
# Cookies (RFC 6265, section 4.1.1): a token, and octets without spaces, quotes, commas, semicolons.
_COOKIE_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_COOKIE_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


def parse_duration(text: str) -> dt.timedelta | None:
    """Parses a duration such as ``1.5s``, ``100ms`` or ``1h30m``; returns None for any other text.

    Fractions of a microsecond are rounded up, so that no duration becomes shorter.
    """
    length_ns = None if "d" in text else parse_nanoseconds(text)
    if length_ns is None or length_ns > _LONGEST_NS:
        return None
    return dt.timedelta(microseconds=math.ceil(length_ns / 1000))


def parse_nanoseconds(text: str) -> Fraction | None:
    """Parses a duration of any length into nanoseconds; returns None for any other text.

    Days (``1d``) count too, which Jaeger accepts and Go does not.
    """
    if text == "0":
        return Fraction()
    if not _DURATION.fullmatch(text):
        return None
    return sum(
        (
            Fraction(number.removesuffix(".")) * _UNITS_NS[unit]
            for number, unit in re.findall(_PART, text, re.ASCII)
        ),
        Fraction(),
    )


def duration_text(duration: dt.timedelta) -> str:
    """Returns a duration as YAML has it: ``250ms``, ``1.5s``, ``90s``."""
    seconds = duration.total_seconds()
    if 0 < seconds < 1:
        return f"{seconds * 1000:.6g}ms"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def is_label(text: str) -> bool:
    """Returns whether a text is a DNS label (RFC 1123) in lower case, as Kubernetes requires."""
    return _LABEL.fullmatch(text) is not None


def is_host_label(text: str) -> bool:
    """Returns whether a text is a DNS label to Istio, in any case of letters."""
    return is_label(text.lower()) and text.isascii()


def is_subdomain(text: str, *, wildcard: bool = False) -> bool:
    """Returns whether Istio accepts a text as a DNS name.

    A name whose last label is a number could be mistaken for an address.

    Args:
        text: The text.
        wildcard: Whether the first label may be ``*``.
    """
    if wildcard and text.startswith("*."):
        text = text[2:]
    *_, last = labels = text.split(".")
    return len(text) <= 253 and all(map(is_host_label, labels)) and not last.isdecimal()


def is_object_name(text: str) -> bool:
    """Returns whether Kubernetes accepts a text as the name of an object."""
    return len(text) <= 253 and _OBJECT_NAME.fullmatch(text) is not None


def is_label_name(text: str) -> bool:
    """Returns whether Kubernetes accepts a label name: ``version``, ``example.com/tier``."""
    prefix, slash, name = text.rpartition("/")
    if slash and not (len(prefix) <= 253 and all(map(is_host_label, prefix.split(".")))):
        return False
    return name != "" and is_label_value(name)


def is_label_value(text: str) -> bool:
    """Returns whether Kubernetes accepts a text as a label value; it may be empty."""
    return _QUALIFIED.fullmatch(text) is not None


def is_time(text: str) -> bool:
    """Returns whether a text is a time as Kubernetes writes it (RFC 3339)."""
    try:
        dt.datetime.fromisoformat(text)
    except ValueError:
        return False
    return _TIME.fullmatch(text) is not None


def is_header_name(name: str) -> bool:
    """Returns whether a text is a header name in lower case, or a pseudo-header of HTTP/2."""
    return _HEADER.fullmatch(name) is not None


def is_cookie_name(text: str) -> bool:
    """Returns whether a text is the name of a cookie (RFC 6265)."""
    return _COOKIE_NAME.fullmatch(text) is not None


def is_cookie_value(text: str) -> bool:
    """Returns whether a text is a value of a cookie, not empty and without quotes (RFC 6265)."""
    return _COOKIE_VALUE.fullmatch(text) is not None


def is_ip_address(text: str) -> bool:
    """Returns whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
