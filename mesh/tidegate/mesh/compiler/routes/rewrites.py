"""Rewrites: how a route changes requests and responses, and answers that no server gives.

Envoy does not treat the authority as a header. Where ``headers`` set it, the request is sent with
that authority.
"""

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import regex_pb2

from tidegate.istio.virtual_service import (
    DirectResponse,
    HeaderOperations,
    Headers,
    HttpRedirect,
    HttpRewrite,
    RedirectPort,
    VirtualService,
)
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.routes.destinations import RouteContext

__all__ = ["authority_of", "change_headers", "redirect", "respond", "rewrite_path"]

_AUTHORITY: Final = (":authority", "host")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = {
    301: route_components_pb2.RedirectAction.MOVED_PERMANENTLY,
    302: route_components_pb2.RedirectAction.FOUND,
    303: route_components_pb2.RedirectAction.SEE_OTHER,
    307: route_components_pb2.RedirectAction.TEMPORARY_REDIRECT,
    308: route_components_pb2.RedirectAction.PERMANENT_REDIRECT,
}

_Option: TypeAlias = base_pb2.HeaderValueOption
_Route: TypeAlias = route_components_pb2.Route


def change_headers(
    where: _Route | route_components_pb2.WeightedCluster.ClusterWeight, headers: Headers
) -> None:
    """Adds changes of headers to those of a route or a weighted destination."""
    where.request_headers_to_add.extend(_added(headers.request))
    where.request_headers_to_remove.extend(_removed(headers.request))
    where.response_headers_to_add.extend(_added(headers.response))
    where.response_headers_to_remove.extend(_removed(headers.response))


def authority_of(headers: Headers) -> str | None:
    """The authority that changes of headers set, if they set one."""
    for changes in (headers.request.set, headers.request.add):
        for name, value in changes.items():
            if name.lower() in _AUTHORITY:
                return value
    return None


def rewrite_path(action: route_components_pb2.RouteAction, rewrite: HttpRewrite) -> None:
    """Makes a route change the path of requests."""
    if rewrite.uri_regex_rewrite:
        action.regex_rewrite.pattern.CopyFrom(
            regex_pb2.RegexMatcher(regex=rewrite.uri_regex_rewrite.match)
        )
        action.regex_rewrite.substitution = rewrite.uri_regex_rewrite.rewrite
    elif rewrite.uri:
        action.prefix_rewrite = rewrite.uri


def redirect(
    route: _Route,
    virtual_service: VirtualService,
    path: str,
    wanted: HttpRedirect,
    context: RouteContext,
) -> None:
    """Makes a route send clients elsewhere.

    Args:
        route: The route.
        virtual_service: The object.
        path: The path of the rule in it.
        wanted: The redirect of the rule.
        context: Where the route is; it takes errors.
    """
    action = route.redirect
    code = _REDIRECTS.get(wanted.redirect_code)
    if code is None:
        known = ", ".join(map(str, _REDIRECTS))
        context.errors.append(
            CompileError(
                virtual_service.name,
                f"{path}.redirect.redirectCode",
                f"Envoy cannot redirect with {wanted.redirect_code}",
                f"write one of {known}",
            )
        )
        return
    action.response_code = code
    if wanted.authority:
        action.host_redirect = wanted.authority
    if wanted.uri:
        action.path_redirect = wanted.uri
    if wanted.scheme:
        action.scheme_redirect = wanted.scheme
    port = wanted.port
    if wanted.derive_port is RedirectPort.FROM_REQUEST_PORT:
        port = context.port
    scheme = wanted.scheme or ("https" if context.tls else "http")
    if port and port != _DEFAULT_PORTS.get(scheme):
        action.port_redirect = port


def respond(route: _Route, response: DirectResponse) -> None:
    """Makes Envoy itself answer the requests of a route."""
    route.direct_response.status = response.status
    if response.body is not None:
        route.direct_response.body.CopyFrom(base_pb2.DataSource(inline_string=response.body))


def _added(operations: HeaderOperations) -> Iterable[_Option]:
    yield from _options(operations.set, _Option.OVERWRITE_IF_EXISTS_OR_ADD)
    yield from _options(operations.add, _Option.APPEND_IF_EXISTS_OR_ADD)


def _options(values: Mapping[str, str], action: int) -> Iterable[_Option]:
    for name, value in sorted(values.items()):
        if not _is_reserved(name):
            yield _Option(header=base_pb2.HeaderValue(key=name, value=value), append_action=action)


def _removed(operations: HeaderOperations) -> Iterable[str]:
    return (name for name in operations.remove if not _is_reserved(name))


def _is_reserved(name: str) -> bool:
    return name.startswith(":") or name.lower() == "host"
