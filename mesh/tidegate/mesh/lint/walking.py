"""What becomes of one request, in words: the rules in order, up to the one that takes it."""

from collections.abc import Iterator

from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.lint.explaining import destinations_of, heading, merged, route_lines
from tidegate.mesh.lint.requests import Request, judge
from tidegate.mesh.lint.view import MeshView, Route

__all__ = ["explain_request", "reached"]


def explain_request(view: MeshView, request: Request, host: HostName | None = None) -> list[str]:
    """What becomes of one request, as lines: which rules take it, and why others do not.

    Args:
        view: the mesh.
        request: the request.
        host: only VirtualServices that send requests to this host; all when None.
    """
    lines = [f"{'call of' if request.grpc else 'request for'} {request.path}", ""]
    for service in view.objects.virtual_services.values():
        routes = [route for route in view.routes if route.service is service]
        if host is None or any(host in destinations_of(route) for route in routes):
            lines += [*_walk(view, service, routes, request), ""]
    if len(lines) == 2:
        whom = f"sends requests to {host}" if host is not None else "is there"
        lines += [f"no VirtualService {whom}", ""]
    return lines[:-1]


def reached(view: MeshView, request: Request, host: HostName | None = None) -> list[Route]:
    """The rules that take a request, or may."""
    found: list[Route] = []
    for service in view.objects.virtual_services.values():
        routes = [route for route in view.routes if route.service is service]
        if host is not None and not any(host in destinations_of(route) for route in routes):
            continue
        for route in routes:
            taken = judge(route, request).taken
            if taken is not False:
                found.append(route)
            if taken:
                break
    return found


def _walk(
    view: MeshView, service: VirtualService, routes: list[Route], request: Request
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
