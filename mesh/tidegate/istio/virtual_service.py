"""VirtualService: the routes of requests to some hosts, and how each route treats its requests."""

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from tidegate.istio.annotations import VirtualServiceAnnotations
from tidegate.istio.names import MESH, ObjectName
from tidegate.istio.shapes import (
    GatewayName,
    HeaderName,
    HostName,
    Inside,
    Message,
    Positive,
    Range,
    Regex,
    StringMatch,
    SubsetName,
)

__all__ = [
    "CorsPolicy",
    "Destination",
    "DirectResponse",
    "FaultAbort",
    "FaultDelay",
    "FaultInjection",
    "HeaderOperations",
    "Headers",
    "HttpMatchRequest",
    "HttpRedirect",
    "HttpRetry",
    "HttpRewrite",
    "HttpRoute",
    "HttpRouteDestination",
    "Mirror",
    "RedirectPort",
    "RegexRewrite",
    "UnmatchedPreflights",
    "VirtualService",
]

_PERCENT = Range(0, 100)
_PORT = Range(1, 65535)
_INT32 = Range(0, 2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination(Message):
    """A host, or a subset of it.

    Attributes:
        host: The host.
        subset: A subset that a DestinationRule of the host defines; all endpoints without one.
        port: The host's port. A host with only one port needs none.
    """

    host: HostName
    subset: SubsetName | None = None
    port: Annotated[int | None, Inside("number"), _PORT] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderOperations(Message):
    """Changes of headers. Envoy applies them in this order: set, add, remove.

    Attributes:
        set: Headers that get this value and lose any other.
        add: Headers that get this value beside the values they have.
        remove: Headers to remove.
    """

    set: Mapping[str, str] = field(default_factory=dict)
    add: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers(Message):
    """Changes of the headers of requests and responses.

    Attributes:
        request: Changes of the request, before it goes to the server.
        response: Changes of the response, before it goes to the client.
    """

    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpMatchRequest(Message):
    """Conditions on a request, all of which have to hold.

    Attributes:
        name: A name for reports.
        uri: On the path. The path of a gRPC method is ``/package.Service/Method``.
        scheme: On the scheme.
        method: On the HTTP method, which is POST for gRPC.
        authority: On the authority.
        headers: On headers, by name in lower case; ``{}`` asks for presence.
        without_headers: On headers, none of which may hold.
        port: On the port that the client called: a gateway's port, or a host's port in the mesh.
        query_params: On query parameters; ``{}`` asks for presence.
        ignore_uri_case: Whether exact and prefix conditions on the path ignore case.
        gateways: Gateways at which the conditions apply; all of the VirtualService's without any.
    """

    OPAQUE = frozenset({"sourceLabels", "sourceNamespace", "statPrefix"})

    name: str | None = None
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Mapping[HeaderName, StringMatch] = field(default_factory=dict)
    without_headers: Mapping[HeaderName, StringMatch] = field(default_factory=dict)
    port: Annotated[int | None, _PORT] = None
    query_params: Mapping[str, StringMatch] = field(default_factory=dict)
    ignore_uri_case: bool = False
    gateways: tuple[GatewayName, ...] = ()

    def holds_at(self, gateway: GatewayName, port: int) -> bool:
        """Returns whether the conditions apply at a gateway, or in the mesh, and a port of it."""
        return (not self.gateways or gateway in self.gateways) and self.port in (None, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRouteDestination(Message):
    """One of the destinations between which a route divides its requests.

    Attributes:
        destination: The host and subset.
        weight: The share, relative to the sum of all weights. A single destination gets every
            request. Beside others, a missing weight is 0, as in Istio.
        headers: Changes of headers for this destination only.
    """

    destination: Destination
    weight: Annotated[int, _INT32] = 0
    headers: Headers = Headers()


class RedirectPort(enum.Enum):
    """How a redirect finds its port."""

    FROM_PROTOCOL_DEFAULT = "FROM_PROTOCOL_DEFAULT"
    FROM_REQUEST_PORT = "FROM_REQUEST_PORT"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRedirect(Message):
    """A response that sends the client to another URL; gRPC clients do not follow it.

    Attributes:
        uri: The new path.
        authority: The new authority.
        port: The new port.
        derive_port: How to find the port, instead of ``port``.
        scheme: The new scheme.
        redirect_code: The HTTP status.
    """

    OPAQUE = frozenset({"prefixRewrite"})

    uri: str | None = None
    authority: str | None = None
    port: Annotated[int | None, _PORT] = None
    derive_port: RedirectPort | None = None
    scheme: str | None = None
    redirect_code: Annotated[int, Range(300, 399)] = 301


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectResponse(Message):
    """A response that the proxy sends without calling a server.

    Attributes:
        status: The HTTP status.
        body: The text of the response.
    """

    status: Annotated[int, Range(200, 599)]
    body: Annotated[str | None, Inside("string")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexRewrite(Message):
    r"""A substitution in the path.

    Attributes:
        match: The part of the path to replace.
        rewrite: The replacement; ``\1`` is the first group.
    """

    match: Regex
    rewrite: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRewrite(Message):
    """Changes of a request's path and authority.

    Attributes:
        uri: The new path, or the new prefix where the route matches a prefix.
        authority: The new authority.
        uri_regex_rewrite: A substitution in the path, instead of ``uri``.
    """

    uri: str | None = None
    authority: str | None = None
    uri_regex_rewrite: RegexRewrite | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRetry(Message):
    """How often and when the proxy retries a request.

    Attributes:
        attempts: Most retries; 0 turns retries off.
        per_try_timeout: Timeout of each try, the first included; the route's timeout without it.
        retry_on: Conditions by Envoy's names, such as ``unavailable,cancelled``, and statuses such
            as ``503``; Istio's default without it.
        backoff: Shortest wait before a retry; 25 ms without it.
        retry_ignore_previous_hosts: Whether a retry avoids endpoints that were tried; true without
            it.
        retry_remote_localities: Whether a retry may go to another locality.
    """

    attempts: Annotated[int, _INT32] = 0
    per_try_timeout: Annotated[dt.timedelta | None, Positive()] = None
    retry_on: str | None = None
    backoff: Annotated[dt.timedelta | None, Positive()] = None
    retry_ignore_previous_hosts: bool | None = None
    retry_remote_localities: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultDelay(Message):
    """A delay before the request goes on.

    Attributes:
        fixed_delay: The length of the delay.
        percentage: Share of requests to delay, 0 to 100; 0 without it, as in Istio.
    """

    OPAQUE = frozenset({"exponentialDelay", "percent"})

    fixed_delay: Annotated[dt.timedelta, Positive()]
    percentage: Annotated[float, Inside("value"), _PERCENT] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAbort(Message):
    """An error instead of a response.

    Attributes:
        http_status: The HTTP status.
        grpc_status: The gRPC status by name, such as ``UNAVAILABLE``, instead of ``http_status``.
        percentage: Share of requests to abort, 0 to 100; 0 without it, as in Istio.
    """

    OPAQUE = frozenset({"http2Error"})

    http_status: Annotated[int | None, Range(200, 599)] = None
    grpc_status: str | None = None
    percentage: Annotated[float, Inside("value"), _PERCENT] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultInjection(Message):
    """Faults that the proxy injects.

    Attributes:
        delay: A delay.
        abort: An error.
    """

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror(Message):
    """A destination for copies of requests. Its responses are dropped.

    Attributes:
        destination: The host and subset.
        percentage: Share of requests to copy, 0 to 100.
    """

    destination: Destination
    percentage: Annotated[float, Inside("value"), _PERCENT] = 100.0


class UnmatchedPreflights(enum.Enum):
    """What the proxy does with a preflight request from an origin that is not allowed."""

    UNSPECIFIED = "UNSPECIFIED"
    FORWARD = "FORWARD"
    IGNORE = "IGNORE"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsPolicy(Message):
    """What browsers may do, for gRPC-Web and gateways.

    Attributes:
        allow_origins: Origins that may call.
        allow_methods: HTTP methods that they may use.
        allow_headers: Headers that they may send.
        expose_headers: Headers that their scripts may read.
        max_age: How long a browser may keep the response to a preflight request.
        allow_credentials: Whether a browser may send credentials.
        unmatched_preflights: What the proxy does with preflight requests from other origins.
    """

    OPAQUE = frozenset({"allowOrigin"})

    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: Annotated[dt.timedelta | None, Positive()] = None
    allow_credentials: bool | None = None
    unmatched_preflights: UnmatchedPreflights = UnmatchedPreflights.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRoute(Message):
    """One route. The first route that matches takes the request.

    Attributes:
        name: A name for access logs and reports.
        match: Conditions, any one of which suffices. Without any, every request matches.
        route: Destinations with weights. In a canary the newest comes first, the baseline last.
        redirect: A redirect, instead of ``route``.
        direct_response: A response of the proxy's own, instead of ``route``.
        rewrite: Changes of path and authority.
        timeout: Timeout of the whole call, retries included; none without it.
        retries: When to retry a request; Istio's default (2 retries) without it.
        fault: Faults that the proxy injects.
        mirror: A single destination for copies of requests.
        mirror_percentage: Share of requests that ``mirror`` gets copies of, 0 to 100.
        mirrors: Several destinations for copies, instead of ``mirror``.
        cors_policy: What browsers may do.
        headers: Changes of headers.
    """

    OPAQUE = frozenset({"delegate", "mirrorPercent", "mirror_percent"})

    name: str | None = None
    match: tuple[HttpMatchRequest, ...] = ()
    route: tuple[HttpRouteDestination, ...] = ()
    redirect: HttpRedirect | None = None
    direct_response: DirectResponse | None = None
    rewrite: HttpRewrite | None = None
    timeout: Annotated[dt.timedelta | None, Positive()] = None
    retries: HttpRetry | None = None
    fault: FaultInjection | None = None
    mirror: Destination | None = None
    mirror_percentage: Annotated[float | None, Inside("value"), _PERCENT] = None
    mirrors: tuple[Mirror, ...] = ()
    cors_policy: CorsPolicy | None = None
    headers: Headers = Headers()


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualService(Message):
    """The routes of requests to some hosts.

    Attributes:
        name: The name of the object.
        annotations: Its ``tidegate.dev/*`` annotations.
        hosts: What clients call: hosts, or domains at a gateway, ``*`` for any. Without any, other
            VirtualServices delegate to the routes.
        gateways: Gateways at which the routes apply; ``mesh`` is every client in the mesh.
        http: The routes, in order.
        export_to: ``*`` for every namespace, ``.`` for its own.
    """

    OPAQUE = frozenset({"tcp", "tls"})

    name: ObjectName
    annotations: VirtualServiceAnnotations = field(default_factory=VirtualServiceAnnotations)
    hosts: tuple[HostName, ...] = ()
    gateways: tuple[GatewayName, ...] = (MESH,)
    http: tuple[HttpRoute, ...] = ()
    export_to: tuple[str, ...] = ("*",)

    def applies(self, gateway: GatewayName, port: int) -> bool:
        """Returns whether any route applies at a gateway, or in the mesh, and a port of it."""
        return any(
            not rule.match or any(match.holds_at(gateway, port) for match in rule.match)
            for rule in self.http
        )
