"""Which rule of a VirtualService takes a request, found as Envoy does: the first that matches.

Of a request only the path is known, with its query, and of a gRPC call that it is a POST. What a
rule asks for beside that stays a condition: the rule takes the request if it is met, and else the
next rules are looked at.
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

__all__ = ["SampleRequest", "Verdict", "explain_request", "judge", "reached"]

_METHOD = re.compile(r"/?([A-Za-z_]\w*(?:\.\w+)+/[A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request.

    Attributes:
        path: what it asks for, without the query.
        query: its query parameters.
        grpc: whether it is a gRPC call.
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
class Verdict:
    """Whether a rule takes a request.

    Attributes:
        taken: yes, no, or None where it depends on what is not known of the request.
        why: what the request meets, does not meet, or has to meet.
    """

    taken: bool | None
    why: str


def explain_request(
    view: MeshView, request: SampleRequest, host: HostName | None = None
) -> list[str]:
    """What becomes of one request, as lines: which rules take it, and why others do not.

    Args:
        view: the mesh.
        request: the request.
        host: only VirtualServices that send requests to this host; all when None.
    """
    lines = [f"{'call of' if request.grpc else 'request for'} {request.path}", ""]
    for service in view.objects.virtual_services.values():
        routes = view.routes_of(service)
        if host is None or any(host in route.hosts for route in routes):
            lines += [*_walk(view, service, routes, request), ""]
    if len(lines) == 2:
        whom = f"sends requests to {host}" if host is not None else "is there"
        lines += [f"no VirtualService {whom}", ""]
    return lines[:-1]


def reached(view: MeshView, request: SampleRequest, host: HostName | None = None) -> list[Route]:
    """The rules that take a request, or may."""
    found: list[Route] = []
    for service in view.objects.virtual_services.values():
        routes = view.routes_of(service)
        if host is not None and not any(host in route.hosts for route in routes):
            continue
        for route in routes:
            taken = judge(route, request).taken
            if taken is not False:
                found.append(route)
            if taken:
                break
    return found


def _walk(
    view: MeshView, service: VirtualService, routes: list[Route], request: SampleRequest
) -> Iterator[str]:
    yield heading(service)
    yield from merged(view, service)
    for number, route in enumerate(routes, start=1):
        name = f" {route.rule.name!r}" if route.rule.name else ""
        start = f"  {number}. rule{name} ({route.path})"
        verdict = judge(route, request)
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


def judge(route: Route, request: SampleRequest) -> Verdict:
    """Whether a rule takes a request that came to it."""
    if not route.rule.match:
        return Verdict(True, "every request")
    found = [_judge(route, each, request) for each in route.rule.match]
    met = next((each for each in found if each.taken), None)
    if met is not None:
        return met
    perhaps = [each.why for each in found if each.taken is None]
    if perhaps:
        return Verdict(None, ", or ".join(dict.fromkeys(perhaps)))
    return Verdict(False, "; ".join(dict.fromkeys(each.why for each in found)))


def _judge(route: Route, match: HttpMatchRequest, request: SampleRequest) -> Verdict:
    met: list[str] = []
    open_: list[str] = []
    # What the request has is judged, and what nobody said of it stays open.
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
            return Verdict(False, f"it asks that {words}")
        (met if fits else open_).append(words)
    elsewhere = [each for each in match.gateways if each not in route.service.gateways]
    if match.gateways and len(elsewhere) == len(match.gateways):
        return Verdict(False, f"it is for {' or '.join(elsewhere)} only")
    open_ += [
        f"{name} {condition}"
        for name, condition in (("scheme", match.scheme), ("authority", match.authority))
        if condition is not None
    ]
    open_ += [f"header {name} {condition}" for name, condition in match.headers.items()]
    open_ += [f"not header {name} {each}" for name, each in match.without_headers.items()]
    if match.port is not None:
        open_.append(f"it came in at port {match.port}")
    if match.gateways and {*match.gateways} != {*route.service.gateways}:
        open_.append(f"it came in at {' or '.join(match.gateways)}")
    if open_:
        return Verdict(None, " and ".join(open_))
    return Verdict(True, " and ".join(met) or "every request")


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
