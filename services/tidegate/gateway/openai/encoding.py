"""Writes JSON quickly: values, texts, log probabilities, and frames of server-sent events."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from tidegate.llm.v1 import llm_pb2

__all__ = [
    "chat_logprobs",
    "data_frame",
    "encode",
    "encode_line",
    "event_frame",
    "log_probability",
    "token_text",
]

encode: Final = msgspec.json.Encoder().encode

_LOWEST_LOGPROB: Final = -9999.0
"""What OpenAI's API says of tokens that are hardly possible; JSON has no infinity."""

# UTF-8 of the line ends of Unicode that JSON leaves as they are: the first bytes of each, and each.
_STARTS: Final = (b"\xc2\x85", b"\xe2\x80")
_LINE_ENDS: Final = (
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)


def encode_line(value: Any) -> bytes:
    r"""Encodes a value as JSON for a stream.

    Some clients split a stream into lines at each character that Unicode counts as a line's end,
    and not only at those of server-sent events. So these are escaped.
    """
    encoded = encode(value)
    if _STARTS[0] in encoded or _STARTS[1] in encoded:
        for raw, escape in _LINE_ENDS:
            encoded = encoded.replace(raw, escape)
    return encoded


def data_frame(value: Any) -> bytes:
    """Makes a frame of a value."""
    return b"data: %b\n\n" % encode_line(value)


def event_frame(kind: str, value: Any) -> bytes:
    """Makes a frame of a value, with the type of its event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_line(value))


def token_text(token: llm_pb2.TokenLogprob) -> str:
    r"""Returns a token's text; bytes that are no whole character are written as ``\xf0``."""
    return token.token_bytes.decode(errors="backslashreplace") or token.token


def log_probability(token: llm_pb2.TokenLogprob) -> float:
    """Returns a token's log probability; JSON has no infinity."""
    return max(token.logprob, _LOWEST_LOGPROB)


def chat_logprobs(positions: Iterable[llm_pb2.Logprobs]) -> list[dict[str, Any]]:
    """Writes log probabilities as chat completions and responses have them."""
    return [
        {**_token(each.chosen), "top_logprobs": [_token(other) for other in each.top]}
        for each in positions
    ]


def _token(token: llm_pb2.TokenLogprob) -> dict[str, Any]:
    return {
        "token": token_text(token),
        "logprob": log_probability(token),
        "bytes": list(token.token_bytes),
    }
