"""Rules of a VirtualService and its messages."""

import http
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tidegate.istio import virtual_service as vs
from tidegate.istio.names import MESH
from tidegate.istio.rules.violation import Violation, at_most_one, export_to, twice
from tidegate.istio.scalars import is_header_name, is_ip_address
from tidegate.istio.shapes import HostName, Message, StringMatchKind

__all__ = ["GRPC_STATUSES", "ROUTE_RULES"]

GRPC_STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
"""The names of the gRPC statuses, in the order of their numbers."""

_RETRY_CONDITIONS = frozenset(
    {
        *("5xx", "gateway-error", "reset", "reset-before-request", "connect-failure"),
        *("retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers"),
        *("envoy-ratelimited", "http3-post-connect-failure", "cancelled", "deadline-exceeded"),
        *("internal", "resource-exhausted", "unavailable"),
    }
)
_HTTP_STATUSES = frozenset(str(status.value) for status in http.HTTPStatus)
_CORS_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"}
)


def _virtual_service(message: vs.VirtualService) -> Iterator[Violation]:
    if not message.http:
        yield Violation("http", "is empty", "add a route")
    if "*" in message.hosts and MESH in message.gateways:
        index = message.hosts.index(HostName("*"))
        fix = "name hosts, or name a gateway and not mesh"
        yield Violation(f"hosts[{index}]", "'*' matches every call inside the mesh", fix)
    for index, host in enumerate(message.hosts):
        if not host:
            yield Violation(f"hosts[{index}]", "is empty", "name the host")
    yield from twice(message.hosts, "hosts[{}]", "host")
    yield from _overlapping(message.hosts)
    yield from twice(message.gateways, "gateways[{}]", "gateway")
    yield from export_to(message.export_to)


def _overlapping(hosts: tuple[HostName, ...]) -> Iterator[Violation]:
    """Checks for wildcards that match other hosts of the same list: Istio calls them duplicates."""
    for index, host in enumerate(hosts):
        for before in hosts[:index]:
            if _takes(before, host):
                wide, narrow = before, host
            elif _takes(host, before):
                wide, narrow = host, before
            else:
                continue
            if wide != narrow:
                problem = f"{wide} matches {narrow} too, and Istio refuses both in one object"
                fix = "keep one, or write a VirtualService for each"
                yield Violation(f"hosts[{index}]", problem, fix)
                break


def _takes(wide: HostName, narrow: HostName) -> bool:
    return wide.startswith("*") and narrow.endswith(wide[1:])


def _http_route(message: vs.HttpRoute) -> Iterator[Violation]:
    actions = (
        ("route", "route"),
        ("redirect", "redirect"),
        ("direct_response", "directResponse"),
    )
    yield from at_most_one(message, *actions, least=1)
    if message.redirect is not None or message.direct_response is not None:
        for present, name in ((message.fault, "fault"), (message.rewrite, "rewrite")):
            if present is not None:
                yield Violation(name, "has no effect where no server is called", "remove it")
    yield from at_most_one(message, ("mirror", "mirror"), ("mirrors", "mirrors"))
    if message.mirror_percentage is not None and message.mirror is None:
        fix = "add 'mirror', or write the percentage in 'mirrors'"
        yield Violation("mirrorPercentage", "has no effect without 'mirror'", fix)
    total = sum(each.weight for each in message.route)
    if len(message.route) > 1 and total == 0:
        yield Violation("route", "all weights are 0: no request could go anywhere", "add weights")
    elif total and total % 2**32 == 0:
        # Istio adds the weights in 32 bits and refuses a sum of 0.
        yield Violation("route", f"the weights add up to {total}", "write smaller weights")
    if message.rewrite is not None and message.rewrite.authority:
        for verb in ("set", "add"):
            if any(map(_is_authority, getattr(message.headers.request, verb))):
                fix = "keep rewrite.authority"
                problem = "sets the authority a second time"
                yield Violation(f"headers.request.{verb}", problem, fix)
    elif len(list(filter(_is_authority, _written(message.headers.request)))) > 1:
        problem = "changes the authority more than once"
        yield Violation("headers.request", problem, "keep one of :authority and host")


def _headers(message: vs.Headers) -> Iterator[Violation]:
    for way, operations in (("request", message.request), ("response", message.response)):
        for verb in ("set", "add", "remove"):
            changed: Iterable[str] = getattr(operations, verb)
            for name in changed:
                path = f"{way}.{verb}"
                allowed = way == "request" and verb != "remove" and _is_authority(name)
                if not allowed and (not name or name.startswith(":") or name.lower() == "host"):
                    yield Violation(path, f"cannot change the header {name!r}", "remove it")


def _written(operations: vs.HeaderOperations) -> Iterator[str]:
    yield from operations.set
    yield from operations.add


def _is_authority(header: str) -> bool:
    return header.lower() in (":authority", "host")


def _match(message: vs.HttpMatchRequest) -> Iterator[Violation]:
    for name in message.headers:
        if name in ("uri", "scheme", "method", "authority"):
            fix = f"write '{name}' beside 'headers'"
            yield Violation(f"headers.{name}", "is not a header; Istio ignores it", fix)
    uri = message.uri
    if message.ignore_uri_case and (uri is None or uri.kind is StringMatchKind.REGEX):
        fix = "remove it; in a regex write (?i)"
        yield Violation("ignoreUriCase", "applies to exact and prefix conditions only", fix)


def _destination(message: vs.Destination) -> Iterator[Violation]:
    if is_ip_address(message.host):
        fix = "declare it in a ServiceEntry and name its host"
        yield Violation("host", "is an address and not a host", fix)


def _redirect(message: vs.HttpRedirect) -> Iterator[Violation]:
    yield from at_most_one(message, ("port", "port"), ("derive_port", "derivePort"))
    parts = ("uri", "authority", "scheme", "port", "derive_port")
    if all(getattr(message, name) is None for name in parts):
        yield Violation("", "has no target", "add uri, authority, scheme or port")
    if message.scheme not in (None, "http", "https"):
        yield Violation("scheme", f"cannot be {message.scheme!r}", "write http or https")


def _rewrite(message: vs.HttpRewrite) -> Iterator[Violation]:
    yield from at_most_one(message, ("uri", "uri"), ("uri_regex_rewrite", "uriRegexRewrite"))
    pattern = message.uri_regex_rewrite
    if pattern is not None and not pattern.rewrite:
        fix = "write by what; to remove a part of the path, keep the rest as a group"
        yield Violation("uriRegexRewrite", "lacks 'rewrite', which may not be empty", fix)
    if message == vs.HttpRewrite():
        yield Violation("", "rewrites nothing", "add uri, authority or uriRegexRewrite")


def _retries(message: vs.HttpRetry) -> Iterator[Violation]:
    conditions = (message.per_try_timeout, message.retry_on, message.retry_remote_localities)
    if message.attempts == 0 and any(each is not None for each in conditions):
        yield Violation("", "has conditions and no attempts", "add 'attempts', or keep only it")
    for condition in message.retry_on.split(",") if message.retry_on else ():
        known = condition in _RETRY_CONDITIONS or condition in _HTTP_STATUSES
        if not known:
            fix = f"known are {', '.join(sorted(_RETRY_CONDITIONS))} and HTTP statuses"
            yield Violation("retryOn", f"has no condition {condition!r}", fix)


def _fault(message: vs.FaultInjection) -> Iterator[Violation]:
    if message.delay is None and message.abort is None:
        yield Violation("", "has neither 'delay' nor 'abort'", "add one")


def _abort(message: vs.FaultAbort) -> Iterator[Violation]:
    statuses = (("http_status", "httpStatus"), ("grpc_status", "grpcStatus"))
    yield from at_most_one(message, *statuses, least=1)
    if message.grpc_status is not None and message.grpc_status not in GRPC_STATUSES:
        fix = "write a name such as UNAVAILABLE"
        yield Violation("grpcStatus", f"{message.grpc_status!r} is not a gRPC status", fix)


def _cors(message: vs.CorsPolicy) -> Iterator[Violation]:
    for index, method in enumerate(message.allow_methods):
        if method not in _CORS_METHODS:
            fix = "write a method such as POST"
            yield Violation(f"allowMethods[{index}]", f"{method!r} is not an HTTP method", fix)
    for field, headers in (
        ("allowHeaders", message.allow_headers),
        ("exposeHeaders", message.expose_headers),
    ):
        for index, header in enumerate(headers):
            if header.startswith(":") or not is_header_name(header.lower()):
                fix = "write it like x-user-tier, or '*'"
                yield Violation(f"{field}[{index}]", f"{header!r} is not a header", fix)
    if message.max_age is not None and message.max_age.microseconds:
        yield Violation("maxAge", "has parts of a second", "write whole seconds")


ROUTE_RULES: Mapping[type[Message], Callable[[Any], Iterator[Violation]]] = {
    vs.VirtualService: _virtual_service,
    vs.HttpRoute: _http_route,
    vs.Headers: _headers,
    vs.HttpMatchRequest: _match,
    vs.Destination: _destination,
    vs.HttpRedirect: _redirect,
    vs.HttpRewrite: _rewrite,
    vs.HttpRetry: _retries,
    vs.FaultInjection: _fault,
    vs.FaultAbort: _abort,
    vs.CorsPolicy: _cors,
}
