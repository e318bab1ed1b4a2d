"""Values that Istio accepts and that Envoy or Linux rejects.

Envoy rejects a whole response for one such value, with every other route or listener in it. So the
compiler refuses the value by name before Envoy sees it.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tidegate.istio import destination_rule as dr
from tidegate.istio import gateway as gw
from tidegate.istio import virtual_service as vs
from tidegate.istio.rules import Violation
from tidegate.istio.scalars import duration_text
from tidegate.istio.shapes import Message
from tidegate.mesh.compiler.header_values import header_value_problem

__all__ = ["CIPHERS", "ENVOY_LIMITS"]

CIPHERS = frozenset(
    {
        *(f"ECDHE-{key}-AES128-GCM-SHA256" for key in ("ECDSA", "RSA")),
        *(f"ECDHE-{key}-AES256-GCM-SHA384" for key in ("ECDSA", "RSA")),
        *(f"ECDHE-{key}-CHACHA20-POLY1305" for key in ("ECDSA", "RSA")),
        *(f"ECDHE-{key}-AES{bits}-SHA" for key in ("ECDSA", "RSA") for bits in (128, 256)),
        *("AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA"),
        "ALL",
    }
)
"""Envoy's cipher suites of TLS 1.2, by OpenSSL's names. A suite may also be in a group, ``[A|B]``.
"""

_LEAST_PERCENT = 0.0001
_MOST_PROBES = 127
_LONGEST_KEEPALIVE = dt.timedelta(seconds=32_767)


def _headers(message: vs.Headers) -> Iterator[Violation]:
    for way, operations in (("request", message.request), ("response", message.response)):
        for name in operations.remove:
            yield from _on_one_line((f"{way}.remove", name))
        for verb, values in (("set", operations.set), ("add", operations.add)):
            for name, value in values.items():
                path = f"{way}.{verb}"
                yield from _on_one_line((path, name))
                if found := header_value_problem(value):
                    problem, _, fix = found.partition("; ")
                    yield Violation(f"{path}.{name}", problem, fix)


def _match(message: vs.HttpMatchRequest) -> Iterator[Violation]:
    if "" in message.query_params:
        yield Violation("queryParams", "has an empty name, which Envoy rejects", "name it")


def _redirect(message: vs.HttpRedirect) -> Iterator[Violation]:
    return _on_one_line(("uri", message.uri), ("authority", message.authority))


def _rewrite(message: vs.HttpRewrite) -> Iterator[Violation]:
    yield from _on_one_line(("uri", message.uri), ("authority", message.authority))
    if message.uri_regex_rewrite is not None:
        yield from _on_one_line(("uriRegexRewrite.rewrite", message.uri_regex_rewrite.rewrite))


def _fault(message: vs.FaultDelay | vs.FaultAbort) -> Iterator[Violation]:
    """Checks for a share that Envoy, which counts in millionths, would round to zero."""
    if 0 < message.percentage < _LEAST_PERCENT:
        fix = f"write 0, or {_LEAST_PERCENT} or more"
        yield Violation("percentage.value", f"cannot be {message.percentage:g}", fix)


def _keepalive(message: dr.TcpKeepalive) -> Iterator[Violation]:
    """Rejects socket options that Linux refuses, because no connection would open."""
    if message.probes is not None and message.probes > _MOST_PROBES:
        yield Violation("probes", f"is more than the {_MOST_PROBES} of Linux", "write fewer")
    for name in ("time", "interval"):
        length = getattr(message, name)
        if length is not None and length > _LONGEST_KEEPALIVE:
            longest = duration_text(_LONGEST_KEEPALIVE)
            yield Violation(name, f"is longer than the {longest} of Linux", "write a shorter time")


def _server_tls(message: gw.ServerTls) -> Iterator[Violation]:
    """Checks names for which Envoy rejects a listener; Istio skips them."""
    for index, suite in enumerate(message.cipher_suites):
        group = suite[1:-1].split("|") if suite.startswith("[") and suite.endswith("]") else [suite]
        for name in group:
            if name not in CIPHERS:
                fix = f"known are {', '.join(sorted(CIPHERS))}"
                problem = f"{name!r} is not a TLS 1.2 cipher suite that Envoy knows"
                yield Violation(f"cipherSuites[{index}]", problem, fix)


def _on_one_line(*texts: tuple[str, str | None]) -> Iterator[Violation]:
    """Checks texts, by their paths: Envoy rejects a line break or a zero byte."""
    for path, text in texts:
        if text is not None and not {"\0", "\r", "\n"}.isdisjoint(text):
            yield Violation(
                path, "has a line break or a zero byte, which Envoy rejects", "remove it"
            )


ENVOY_LIMITS: Mapping[type[Message], Callable[[Any], Iterator[Violation]]] = {
    vs.Headers: _headers,
    vs.HttpMatchRequest: _match,
    vs.HttpRedirect: _redirect,
    vs.HttpRewrite: _rewrite,
    vs.FaultDelay: _fault,
    vs.FaultAbort: _fault,
    dr.TcpKeepalive: _keepalive,
    gw.ServerTls: _server_tls,
}
"""The checks of each message."""
