"""VirtualService: which requests go where, and how they are treated on the way."""

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
    """A host, or a part of it.

    Attributes:
        host: the host.
        subset: a subset that a DestinationRule of the host defines; all endpoints without one.
        port: the host's port; may be left out where the host has only one.
    """

    host: HostName
    subset: SubsetName | None = None
    port: Annotated[int | None, Inside("number"), _PORT] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderOperations(Message):
    """Changes of headers, in Envoy's order: set, add, remove.

    Attributes:
        set: headers that get this value, whatever they had.
        add: headers that get this value beside what they have.
        remove: headers that go.
    """

    set: Mapping[str, str] = field(default_factory=dict)
    add: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers(Message):
    """Changes of headers both ways.

    Attributes:
        request: on what goes to the server.
        response: on what comes back.
    """

    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpMatchRequest(Message):
    """Conditions that all have to hold.

    Attributes:
        name: what it is called in reports.
        uri: on the path; a gRPC method is the exact path ``/package.Service/Method``.
        scheme: on the scheme.
        method: on the HTTP method, which is POST for gRPC.
        authority: on the authority.
        headers: on headers, by name in lower case; ``{}`` asks for presence.
        without_headers: on headers, none of which may hold.
        port: on the port that the client called; compared by gateway listeners and mesh ports.
        query_params: on query parameters; ``{}`` asks for presence.
        ignore_uri_case: whether exact and prefix conditions on the path ignore case.
        gateways: where the condition counts; everywhere the VirtualService does when empty.
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
        """Whether the condition counts at a gateway, or in the mesh, and a port of it."""
        return (not self.gateways or gateway in self.gateways) and self.port in (None, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRouteDestination(Message):
    """One of the destinations between which a route divides its requests.

    Attributes:
        destination: where.
        weight: its share, relative to the sum of all; a single destination gets everything, and
            left out beside others it is 0, as in Istio.
        headers: changes of headers for this destination only.
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
    """An answer that sends the client elsewhere; gRPC clients do not follow it.

    Attributes:
        uri: the new path.
        authority: the new authority.
        port: the new port.
        derive_port: how the port is found, instead of ``port``.
        scheme: the new scheme.
        redirect_code: the HTTP status.
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
    """An answer that no server gives.

    Attributes:
        status: the HTTP status.
        body: the text of the answer.
    """

    status: Annotated[int, Range(200, 599)]
    body: Annotated[str | None, Inside("string")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexRewrite(Message):
    r"""A substitution in the path.

    Attributes:
        match: what is replaced.
        rewrite: by what; ``\1`` is its first group.
    """

    match: Regex
    rewrite: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRewrite(Message):
    """Changes of a request before it goes on.

    Attributes:
        uri: the new path, or the new prefix where the match is on a prefix.
        authority: the new authority.
        uri_regex_rewrite: a substitution in the path, instead of ``uri``.
    """

    uri: str | None = None
    authority: str | None = None
    uri_regex_rewrite: RegexRewrite | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRetry(Message):
    """How often and when a request is tried again.

    Attributes:
        attempts: tries after the first; 0 turns retries off.
        per_try_timeout: time for each try, the first included; the route's timeout without it.
        retry_on: conditions by Envoy's words, such as ``unavailable,cancelled`` and statuses such
            as ``503``; Istio's default without it.
        backoff: least wait before a retry; 25 ms without it.
        retry_ignore_previous_hosts: whether a retry avoids endpoints that were tried; yes without
            it.
        retry_remote_localities: whether a retry may go to another locality.
    """

    attempts: Annotated[int, _INT32] = 0
    per_try_timeout: Annotated[dt.timedelta | None, Positive()] = None
    retry_on: str | None = None
    backoff: Annotated[dt.timedelta | None, Positive()] = None
    retry_ignore_previous_hosts: bool | None = None
    retry_remote_localities: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultDelay(Message):
    """A wait before the request goes on.

    Attributes:
        fixed_delay: how long.
        percentage: of how many requests, 0 to 100; of none without it, as in Istio.
    """

    OPAQUE = frozenset({"exponentialDelay", "percent"})

    fixed_delay: Annotated[dt.timedelta, Positive()]
    percentage: Annotated[float, Inside("value"), _PERCENT] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAbort(Message):
    """An error instead of an answer.

    Attributes:
        http_status: the HTTP status.
        grpc_status: the gRPC status by name, such as ``UNAVAILABLE``, instead of ``http_status``.
        percentage: of how many requests, 0 to 100; of none without it, as in Istio.
    """

    OPAQUE = frozenset({"http2Error"})

    http_status: Annotated[int | None, Range(200, 599)] = None
    grpc_status: str | None = None
    percentage: Annotated[float, Inside("value"), _PERCENT] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultInjection(Message):
    """Faults made on purpose.

    Attributes:
        delay: a wait.
        abort: an error.
    """

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror(Message):
    """A destination that gets copies of requests, and whose answers nobody sees.

    Attributes:
        destination: where.
        percentage: of how many requests, 0 to 100.
    """

    destination: Destination
    percentage: Annotated[float, Inside("value"), _PERCENT] = 100.0


class UnmatchedPreflights(enum.Enum):
    """What becomes of a preflight request from an origin that is not allowed."""

    UNSPECIFIED = "UNSPECIFIED"
    FORWARD = "FORWARD"
    IGNORE = "IGNORE"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorsPolicy(Message):
    """What browsers may do, for gRPC-Web and gateways.

    Attributes:
        allow_origins: origins that may call.
        allow_methods: HTTP methods that they may use.
        allow_headers: headers that they may send.
        expose_headers: headers that their scripts may read.
        max_age: how long a browser may keep the answer to a preflight request.
        allow_credentials: whether credentials may be sent.
        unmatched_preflights: what becomes of preflight requests from other origins.
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
    """One rule; the first that matches takes the request.

    Attributes:
        name: what it is called in access logs and reports.
        match: conditions, any one of which suffices; without any, every request matches.
        route: destinations with weights. In a canary the newest comes first, the baseline last.
        redirect: an answer that sends the client elsewhere, instead of ``route``.
        direct_response: an answer that no server gives, instead of ``route``.
        rewrite: changes of path and authority.
        timeout: time for the whole call, retries included; none without it.
        retries: when a request is tried again; Istio's default (2 retries) without it.
        fault: faults made on purpose.
        mirror: one destination for copies.
        mirror_percentage: of how many requests ``mirror`` gets copies, 0 to 100.
        mirrors: several destinations for copies, instead of ``mirror``.
        cors_policy: what browsers may do.
        headers: changes of headers.
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
    """How requests for some hosts are routed.

    Attributes:
        name: what the object is called.
        annotations: its ``tidegate.dev/*`` annotations.
        hosts: what clients call: names of hosts, or domains at a gateway, ``*`` for any. Without
            any, another VirtualService may delegate to the rules.
        gateways: where the rules count.
        http: the rules, in order.
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
        """Whether any of the rules holds at a gateway, or in the mesh, and a port of it."""
        return any(
            not rule.match or any(match.holds_at(gateway, port) for match in rule.match)
            for rule in self.http
        )
