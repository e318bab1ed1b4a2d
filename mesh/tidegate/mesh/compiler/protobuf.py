"""Values of Istio objects as Envoy's protobuf messages."""

import datetime as dt
from typing import Final

from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tidegate.istio.shapes import StringMatch, StringMatchKind

__all__ = [
    "ADS",
    "always",
    "duration",
    "fraction",
    "packed",
    "share",
    "socket_address",
    "string_matcher",
]

# No timeout: a proxy that still waits for a resource answers nothing, rather than something wrong.
ADS: Final = config_source_pb2.ConfigSource(
    ads=config_source_pb2.AggregatedConfigSource(),
    resource_api_version=config_source_pb2.ApiVersion.V3,
    initial_fetch_timeout=Duration(),
)
"""The source of further resources: the ADS stream on which the proxy got this one."""


def duration(value: dt.timedelta) -> Duration:
    """A duration."""
    message = Duration()
    message.FromTimedelta(value)
    return message


def packed(message: Message) -> AnyMessage:
    """A message with its type; equal messages give equal bytes."""
    result = AnyMessage()
    result.Pack(message, deterministic=True)
    return result


def share(percentage: float) -> base_pb2.RuntimeFractionalPercent:
    """A share of requests, cut off at a ten-thousandth of a percent as in Istio."""
    return base_pb2.RuntimeFractionalPercent(default_value=fraction(percentage))


def fraction(percentage: float) -> percent_pb2.FractionalPercent:
    """A share of requests, for fields of Envoy that have no runtime key."""
    return percent_pb2.FractionalPercent(
        numerator=int(percentage * 10_000), denominator=percent_pb2.FractionalPercent.MILLION
    )


def always() -> base_pb2.RuntimeFractionalPercent:
    """All requests."""
    return base_pb2.RuntimeFractionalPercent(
        default_value=percent_pb2.FractionalPercent(numerator=100)
    )


def socket_address(address: str, port: int) -> address_pb2.Address:
    """An address to which to connect, or on which to listen."""
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=address, port_value=port)
    )


def string_matcher(match: StringMatch) -> string_pb2.StringMatcher:
    """A condition on a text. A condition on presence has no such message."""
    match match.kind:
        case StringMatchKind.EXACT:
            return string_pb2.StringMatcher(exact=match.value)
        case StringMatchKind.PREFIX:
            return string_pb2.StringMatcher(prefix=match.value)
        case _:
            return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=match.value))
