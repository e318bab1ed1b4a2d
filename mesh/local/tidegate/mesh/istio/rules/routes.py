"""Rules for a VirtualService and what is in it."""

import http
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tidegate.mesh.istio import virtual_service as vs
from tidegate.mesh.istio.names import MESH
from tidegate.mesh.istio.rules.complaint import Complaint, at_most_one, export_to, twice
from tidegate.mesh.istio.shapes import HostName, Message, StringMatchKind

__all__ = ["GRPC_STATUSES", "ROUTE_RULES"]

GRPC_STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
"""The gRPC statuses by name, in the order of their numbers."""

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
_HEADER_VALUE = re.compile(r"([^\x00-\x08\x0a-\x1f\x7f%]|%%|%[A-Z0-9_.]+(\([^)]*\))?(:\d+)?%)*")


def _virtual_service(message: vs.VirtualService) -> Iterator[Complaint]:
    if not message.hosts:
        yield Complaint("hosts", "is empty", "name the host, or '*' at a gateway")
    if not message.http:
        yield Complaint("http", "is empty", "add a route")
    if "*" in message.hosts and MESH in message.gateways:
        index = message.hosts.index(HostName("*"))
        fix = "name hosts, or name a gateway and not mesh"
        yield Complaint(f"hosts[{index}]", "'*' takes every call inside the mesh", fix)
    yield from twice(message.hosts, "hosts[{}]", "host")
    yield from twice(message.gateways, "gateways[{}]", "gateway")
    yield from export_to(message.export_to)


def _http_route(message: vs.HttpRoute) -> Iterator[Complaint]:
    actions = (
        ("route", "route"),
        ("redirect", "redirect"),
        ("direct_response", "directResponse"),
    )
    yield from at_most_one(message, *actions, least=1)
    if message.redirect is not None or message.direct_response is not None:
        for present, name in ((message.fault, "fault"), (message.rewrite, "rewrite")):
            if present is not None:
                yield Complaint(name, "has no effect where no server is called", "remove it")
    yield from at_most_one(message, ("mirror", "mirror"), ("mirrors", "mirrors"))
    if message.mirror_percentage is not None and message.mirror is None:
        fix = "add 'mirror', or write the percentage in 'mirrors'"
        yield Complaint("mirrorPercentage", "has no effect without 'mirror'", fix)
    if len(message.route) > 1 and sum(each.weight for each in message.route) == 0:
        yield Complaint("route", "all weights are 0: no request could go anywhere", "add weights")
    authorities = [name for name in message.headers.request.set if _is_authority(name)]
    if message.rewrite is not None and message.rewrite.authority and authorities:
        fix = "keep rewrite.authority"
        yield Complaint("headers.request.set", "sets the authority a second time", fix)


def _headers(message: vs.Headers) -> Iterator[Complaint]:
    for way, operations in (("request", message.request), ("response", message.response)):
        for verb in ("set", "add", "remove"):
            changed: Iterable[str] = getattr(operations, verb)
            for name in changed:
                path = f"{way}.{verb}"
                allowed = way == "request" and verb != "remove" and _is_authority(name)
                if not allowed and (not name or name.startswith(":") or name.lower() == "host"):
                    yield Complaint(path, f"cannot change the header {name!r}", "remove it")
                if verb != "remove" and not _HEADER_VALUE.fullmatch(
                    getattr(operations, verb)[name]
                ):
                    fix = "write % as %%, and only Envoy's own %VARIABLES%"
                    yield Complaint(f"{path}.{name}", "is not a value of a header", fix)


def _is_authority(header: str) -> bool:
    return header.lower() in (":authority", "host")


def _match(message: vs.HttpMatchRequest) -> Iterator[Complaint]:
    for name in message.headers:
        if name in ("uri", "scheme", "method", "authority"):
            fix = f"write '{name}' beside 'headers'"
            yield Complaint(f"headers.{name}", "is no header; Istio ignores it", fix)
    uri = message.uri
    if message.ignore_uri_case and (uri is None or uri.kind is StringMatchKind.REGEX):
        fix = "remove it; in a regex write (?i)"
        yield Complaint("ignoreUriCase", "counts for exact and prefix only", fix)


def _destination(message: vs.Destination) -> Iterator[Complaint]:
    if message.host.startswith("*"):
        yield Complaint("host", "a destination is one host", "name it in full")


def _redirect(message: vs.HttpRedirect) -> Iterator[Complaint]:
    yield from at_most_one(message, ("port", "port"), ("derive_port", "derivePort"))
    parts = ("uri", "authority", "scheme", "port", "derive_port")
    if all(getattr(message, name) is None for name in parts):
        yield Complaint("", "says nothing of where to", "add uri, authority, scheme or port")
    if message.scheme not in (None, "http", "https"):
        yield Complaint("scheme", f"cannot be {message.scheme!r}", "write http or https")


def _rewrite(message: vs.HttpRewrite) -> Iterator[Complaint]:
    yield from at_most_one(message, ("uri", "uri"), ("uri_regex_rewrite", "uriRegexRewrite"))
    if message == vs.HttpRewrite():
        yield Complaint("", "rewrites nothing", "add uri, authority or uriRegexRewrite")


def _retries(message: vs.HttpRetry) -> Iterator[Complaint]:
    if message.attempts == 0 and message != vs.HttpRetry():
        yield Complaint("", "has conditions and no attempts", "add 'attempts', or keep only it")
    for condition in (message.retry_on or "").split(","):
        known = not condition or condition in _RETRY_CONDITIONS or condition in _HTTP_STATUSES
        if not known:
            fix = f"known are {', '.join(sorted(_RETRY_CONDITIONS))} and HTTP statuses"
            yield Complaint("retryOn", f"has no condition {condition!r}", fix)


def _fault(message: vs.FaultInjection) -> Iterator[Complaint]:
    if message.delay is None and message.abort is None:
        yield Complaint("", "has neither 'delay' nor 'abort'", "add one")


def _abort(message: vs.FaultAbort) -> Iterator[Complaint]:
    statuses = (("http_status", "httpStatus"), ("grpc_status", "grpcStatus"))
    yield from at_most_one(message, *statuses, least=1)
    if message.grpc_status is not None and message.grpc_status not in GRPC_STATUSES:
        fix = "write a name such as UNAVAILABLE"
        yield Complaint("grpcStatus", f"{message.grpc_status!r} is no status of gRPC", fix)


def _cors(message: vs.CorsPolicy) -> Iterator[Complaint]:
    for index, method in enumerate(message.allow_methods):
        if method not in _CORS_METHODS:
            fix = "write a method such as POST"
            yield Complaint(f"allowMethods[{index}]", f"{method!r} is no method of HTTP", fix)
    if message.max_age is not None and message.max_age.microseconds:
        yield Complaint("maxAge", "has parts of a second", "write whole seconds")


ROUTE_RULES: Mapping[type[Message], Callable[[Any], Iterator[Complaint]]] = {
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
