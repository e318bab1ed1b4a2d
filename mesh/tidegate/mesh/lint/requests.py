"""Finds the rule of a VirtualService that takes a request, as Envoy does: the first that matches.

Only the path of a request is known, with its query, and that a gRPC call is a POST. Other parts of
a rule's condition stay open: the rule takes the request if they hold, and the next rules are
explained too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from tidegate.istio.expressions import full_match
from tidegate.istio.shapes import HostName, StringMatch, StringMatchKind
from tidegate.istio.virtual_service import HttpMatchRequest, VirtualService
from tidegate.mesh.lint.explaining import heading, merged, route_lines
from tidegate.mesh.lint.view import MeshView, Route

__all__ = ["SampleRequest", "explain_request", "reached"]

_METHOD = re.compile(r"/?([A-Za-z_]\w*(?:\.\w+)+/[A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request to explain.

    Attributes:
        path: Its path, without the query.
        query: Its query parameters.
        grpc: Whether it is a gRPC call.
    """

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    grpc: bool = False

    @classmethod
    def of(cls, text: str) -> "SampleRequest | None":
        """A request for a path (``/v1/models?limit=2``) or method (``pkg.Service/Method``)."""
        method = _METHOD.fullmatch(text)
        if method is not None:
            return cls(f"/{method[1]}", grpc=True)
        if not text.startswith("/"):
            return None
        path, _, query = text.partition("?")
        return cls(path, dict(parse_qsl(query, keep_blank_values=True)))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether a rule takes a request.

    Attributes:
        taken: Whether it does; None where that depends on unknown parts of the request.
        why: The conditions that hold, do not hold, or must hold.
    """

    taken: bool | None
    why: str


def explain_request(
    view: MeshView, request: SampleRequest, host: HostName | None = None
) -> list[str]:
    """Explains in lines which rules take a request, and why others do not.

    Args:
        view: The mesh.
        request: The request.
        host: Explain only VirtualServices that send requests to this host; None for all.
    """
    lines = [f"{'call of' if request.grpc else 'request for'} {request.path}", ""]
    for virtual_service in view.objects.virtual_services.values():
        routes = view.routes_of(virtual_service)
        if host is None or any(host in route.hosts for route in routes):
            lines += [*_walk(view, virtual_service, routes, request), ""]
    if len(lines) == 2:
        whom = f"sends requests to {host}" if host is not None else "is there"
        lines += [f"no VirtualService {whom}", ""]
    return lines[:-1]


def reached(view: MeshView, request: SampleRequest, host: HostName | None = None) -> list[Route]:
    """The rules that take a request, or may take it."""
    found: list[Route] = []
    for virtual_service in view.objects.virtual_services.values():
        routes = view.routes_of(virtual_service)
        if host is not None and not any(host in route.hosts for route in routes):
            continue
        for route in routes:
            taken = _verdict(route, request).taken
            if taken is not False:
                found.append(route)
            if taken:
                break
    return found


def _walk(
    view: MeshView, virtual_service: VirtualService, routes: list[Route], request: SampleRequest
) -> Iterator[str]:
    yield heading(virtual_service)
    yield from merged(view, virtual_service)
    for number, route in enumerate(routes, start=1):
        name = f" {route.rule.name!r}" if route.rule.name else ""
        start = f"  {number}. rule{name} ({route.path})"
        verdict = _verdict(route, request)
        if verdict.taken is False:
            yield f"{start}: not taken: {verdict.why}"
            continue
        words = "takes it" if verdict.taken else "takes it if"
        why = f" ({verdict.why})" if verdict.taken else f" {verdict.why}"
        yield f"{start}: {words}{why}"
        yield from (f"       {line}" for line in route_lines(view, route))
        if verdict.taken:
            later = len(routes) - number
            if later:
                yield (
                    f"  the {later} rules after it are not reached"
                    if later > 1
                    else ("  the rule after it is not reached")
                )
            return
    yield "  otherwise: 404 (a gRPC client sees UNIMPLEMENTED)"


def _verdict(route: Route, request: SampleRequest) -> _Verdict:
    """Whether a rule takes a request that no earlier rule took."""
    if not route.rule.match:
        return _Verdict(True, "every request")
    found = [_verdict_of_match(route, each, request) for each in route.rule.match]
    met = next((each for each in found if each.taken), None)
    if met is not None:
        return met
    perhaps = [each.why for each in found if each.taken is None]
    if perhaps:
        return _Verdict(None, ", or ".join(dict.fromkeys(perhaps)))
    return _Verdict(False, "; ".join(dict.fromkeys(each.why for each in found)))


def _verdict_of_match(route: Route, match: HttpMatchRequest, request: SampleRequest) -> _Verdict:
    met: list[str] = []
    open_: list[str] = []
    # Known parts of the request are judged; conditions on unknown parts stay open.
    known: list[tuple[str, StringMatch | None, str | None]] = [("path", match.uri, request.path)]
    known += [
        (f"query {name}", condition, request.query.get(name, ""))
        for name, condition in match.query_params.items()
    ]
    known.append(("method", match.method, "POST" if request.grpc else None))
    for name, condition, value in known:
        if condition is None:
            continue
        words = f"{name} {condition}"
        absent = name.startswith("query ") and name.removeprefix("query ") not in request.query
        fits = None if value is None else not absent and _meets(condition, value, match, name)
        if fits is False:
            return _Verdict(False, f"it asks that {words}")
        (met if fits else open_).append(words)
    elsewhere = [each for each in match.gateways if each not in route.virtual_service.gateways]
    if match.gateways and len(elsewhere) == len(match.gateways):
        return _Verdict(False, f"it is for {' or '.join(elsewhere)} only")
    open_ += [
        f"{name} {condition}"
        for name, condition in (("scheme", match.scheme), ("authority", match.authority))
        if condition is not None
    ]
    open_ += [f"header {name} {condition}" for name, condition in match.headers.items()]
    open_ += [f"not header {name} {each}" for name, each in match.without_headers.items()]
    if match.port is not None:
        open_.append(f"it came in at port {match.port}")
    if match.gateways and {*match.gateways} != {*route.virtual_service.gateways}:
        open_.append(f"it came in at {' or '.join(match.gateways)}")
    if open_:
        return _Verdict(None, " and ".join(open_))
    return _Verdict(True, " and ".join(met) or "every request")


def _meets(condition: StringMatch, value: str, match: HttpMatchRequest, name: str) -> bool:
    """Whether a value meets a condition."""
    wanted = condition.value
    if name == "path" and match.ignore_uri_case and condition.kind is not StringMatchKind.REGEX:
        wanted, value = wanted.lower(), value.lower()
    match condition.kind:
        case StringMatchKind.EXACT:
            return value == wanted
        case StringMatchKind.PREFIX:
            return value.startswith(wanted)
        case StringMatchKind.PRESENT:
            return True
        case StringMatchKind.REGEX:
            return full_match(wanted, value)
