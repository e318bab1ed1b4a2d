"""Explains in words what happens to requests: route by route, with the source of each value."""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

from tidegate.istio.destination_rule import (
    ClientTls,
    ConnectionPool,
    LoadBalancer,
    OutlierDetection,
)
from tidegate.istio.editing.plain_values import plain
from tidegate.istio.names import MESH
from tidegate.istio.scalars import duration_text
from tidegate.istio.service_entry import Workload
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.istio.virtual_service import (
    Destination,
    FaultInjection,
    HttpMatchRequest,
    HttpRetry,
    VirtualService,
)
from tidegate.mesh.lint.view import DefinedHost, MeshView, Route

__all__ = ["explain", "heading", "merged", "route_lines"]

_DEFAULT = "Istio's default"
_RETRY_ON = "connect-failure, refused-stream, unavailable, cancelled, retriable-status-codes"
_MOST_ENDPOINTS = 6


def explain(view: MeshView, host: HostName | None = None) -> list[str]:
    """Explains what happens to requests, in lines.

    Args:
        view: The mesh.
        host: The host to explain; None for all hosts.
    """
    lines: list[str] = []
    for each in view.hosts.values():
        if host in (None, each.name):
            lines += [*_host(view, each), ""]
    for virtual_service in view.objects.virtual_services.values():
        routes = view.routes_of(virtual_service)
        if host is None or any(host in route.hosts for route in routes):
            lines += [*_virtual_service(view, virtual_service, routes), ""]
    used = {name for route in view.routes for name in route.hosts}
    for name in view.hosts:
        if host in (None, name) and name not in used:
            lines += [f"no VirtualService sends requests to {name}", ""]
    return lines[:-1]


def merged(view: MeshView, virtual_service: VirtualService) -> Iterator[str]:
    """The other VirtualServices whose rules a gateway merges with those of one."""
    for other in view.objects.virtual_services.values():
        hosts = sorted({*other.hosts} & {*virtual_service.hosts})
        gateways = sorted({*other.gateways} & {*virtual_service.gateways} - {MESH})
        if other is not virtual_service and hosts and gateways:
            yield (
                f"  at gateway {gateways[0]} put together with the rules of {other.name} for "
                f"{hosts[0]}; catch-alls come last"
            )


def _host(view: MeshView, host: DefinedHost) -> Iterator[str]:
    defined = f"{host.entry.name}" if host.entry is not None else "a Service of Kubernetes"
    yield f"host {host.name} ({defined})"
    for port in host.ports:
        protocol = port.protocol.value if port.protocol else "protocol not declared"
        yield f"  port {port.number} {port.name}: {protocol}"
    yield f"  endpoints: {_endpoints(host.endpoints)}"
    for rule in view.rules_of.get(host.name, ()):
        for subset in rule.subsets:
            labels = _labels(subset.labels) or "every label"
            found = _endpoints(view.endpoints(host.name, subset.name))
            yield f"  subset {subset.name} ({labels}; {rule.name}): {found}"


def heading(virtual_service: VirtualService) -> str:
    """A VirtualService, its hosts and its gateways."""
    where = ", ".join(
        "clients inside the mesh" if each == MESH else f"gateway {each}"
        for each in virtual_service.gateways
    )
    hosts = ", ".join("any host" if each == "*" else each for each in virtual_service.hosts)
    return f"{virtual_service.name}: requests for {hosts}, at {where}"


def _virtual_service(
    view: MeshView, virtual_service: VirtualService, routes: list[Route]
) -> Iterator[str]:
    yield heading(virtual_service)
    yield from merged(view, virtual_service)
    for number, route in enumerate(routes, start=1):
        name = f" {route.rule.name!r}" if route.rule.name else ""
        yield f"  {number}. rule{name} ({route.path}): {_condition(route)}"
        yield from (f"       {line}" for line in route_lines(view, route))
    if all(route.rule.match for route in routes):
        yield "  otherwise: 404 (a gRPC client sees UNIMPLEMENTED)"


def _condition(route: Route) -> str:
    if not route.rule.match:
        return "every request"
    return ", or ".join(_match(each) for each in route.rule.match)


def _match(match: HttpMatchRequest) -> str:
    case = " in any case" if match.ignore_uri_case else ""
    words = [
        f"{name} {condition}{case if name == 'path' else ''}"
        for name, condition in (
            ("path", match.uri),
            ("scheme", match.scheme),
            ("method", match.method),
            ("authority", match.authority),
        )
        if condition is not None
    ]
    words += [f"header {name} {condition}" for name, condition in match.headers.items()]
    words += [
        f"not (header {name} {condition})" for name, condition in match.without_headers.items()
    ]
    words += [f"query {name} {condition}" for name, condition in match.query_params.items()]
    if match.port is not None:
        words.append(f"port is {match.port}")
    if match.gateways:
        words.append(f"at {' or '.join(match.gateways)}")
    return " and ".join(words) or "every request"


def route_lines(view: MeshView, route: Route) -> Iterator[str]:
    """What happens to the requests that a rule takes."""
    rule = route.rule
    if rule.redirect is not None or rule.direct_response is not None:
        name = "redirect" if rule.redirect is not None else "directResponse"
        answer = plain(route.virtual_service)["spec"]["http"][route.index][name]
        yield f"answered at once, no server is called: {name} {answer}"
        return
    for _, destination, share in route.shares():
        percent = f"{share * 100:.4g} %"
        yield f"{percent:>7} to {_destination(view, destination)}"
    for _, destination, percentage in route.mirrors():
        yield f"copies of {percentage:g} % to {_destination(view, destination)}, answers unseen"
    sticky = route.virtual_service.annotations.sticky
    if sticky is not None and len(rule.route) > 1:
        source = sticky.header or f"cookie {sticky.cookie}"
        yield f"the same {source} goes the same way (annotation tidegate.dev/sticky)"
    if rule.fault is not None:
        yield from _fault(rule.fault)
    for name, part in (("rewrite", rule.rewrite), ("headers", _changes_headers(route))):
        if part:
            shown = plain(route.virtual_service)["spec"]["http"][route.index][name]
            yield f"{name}: {shown} ({route.path}.{name})"
    yield f"retries: {_retries(view, route)}"
    timeout = rule.timeout
    yield (
        f"timeout: none ({_DEFAULT}); the client's deadline holds"
        if timeout is None
        else f"timeout: {duration_text(timeout)}, retries included ({route.path}.timeout)"
    )
    seen: set[tuple[HostName, SubsetName | None]] = set()
    for _, destination, share in route.shares():
        if share > 0 and (key := (destination.host, destination.subset)) not in seen:
            seen.add(key)
            yield from _policies(view, destination)


def _changes_headers(route: Route) -> bool:
    operations = (route.rule.headers.request, route.rule.headers.response)
    return any(each.set or each.add or each.remove for each in operations)


def _destination(view: MeshView, destination: Destination) -> str:
    port = f" port {destination.port}" if destination.port is not None else ""
    if destination.host not in view.hosts:
        return f"{destination.host}, which nothing defines: 503"
    if destination.subset is None:
        found = _endpoints(view.endpoints(destination.host, None))
        return f"{destination.host}{port}: {found}"
    subset = view.subset(destination.host, destination.subset)
    whose = f"subset {destination.subset} of {destination.host}{port}"
    if subset is None:
        return f"{whose}, which no DestinationRule defines: 503"
    found = _endpoints(view.endpoints(destination.host, destination.subset))
    return f"{whose} ({_labels(subset.labels) or 'every label'}): {found}"


def _endpoints(endpoints: tuple[Workload, ...] | None) -> str:
    if endpoints is None:
        return "known when servers run"
    if not endpoints:
        return "no endpoint: 503"
    shown = [
        f"{each.address}{':' + str(next(iter(each.ports.values()))) if each.ports else ''}"
        for each in endpoints[:_MOST_ENDPOINTS]
    ]
    more = len(endpoints) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _fault(fault: FaultInjection) -> Iterator[str]:
    if fault.delay is not None:
        yield (
            f"{fault.delay.percentage:g} % wait {duration_text(fault.delay.fixed_delay)} first "
            "(fault.delay)"
        )
    if fault.abort is not None:
        status = fault.abort.grpc_status or f"HTTP {fault.abort.http_status}"
        yield f"{fault.abort.percentage:g} % get {status} instead of an answer (fault.abort)"


def _retries(view: MeshView, route: Route) -> str:
    retries = route.rule.retries
    if retries is None:
        return f"2, on {_RETRY_ON}, {_elsewhere(view, route, None)} ({_DEFAULT})"
    if retries.attempts == 0:
        return f"none ({route.path}.retries)"
    conditions = f"{_RETRY_ON} ({_DEFAULT})"
    if retries.retry_on is not None:
        conditions = ", ".join(each.strip() for each in retries.retry_on.split(","))
    words = [f"{retries.attempts}, on {conditions}"]
    if retries.per_try_timeout is not None:
        words.append(f"each try {duration_text(retries.per_try_timeout)}")
    words.append(_elsewhere(view, route, retries))
    return f"{', '.join(words)} ({route.path}.retries)"


def _elsewhere(view: MeshView, route: Route, retries: HttpRetry | None) -> str:
    """Whether retries avoid the endpoints that were tried."""
    chosen = retries.retry_ignore_previous_hosts if retries is not None else None
    hashed = any(
        each.policy.load_balancer is not None
        and each.policy.load_balancer.consistent_hash is not None
        for _, destination, _ in route.shares()
        for each in view.policies(destination.host, destination.subset, destination.port)
    )
    avoids = chosen if chosen is not None else not hashed
    return "at another endpoint" if avoids else "perhaps at the same endpoint"


def _policies(view: MeshView, destination: Destination) -> Iterator[str]:
    found = view.policies(destination.host, destination.subset, destination.port)
    host = view.hosts.get(destination.host)
    port = destination.port
    if port is None and host is not None and len(host.ports) == 1:
        found = view.policies(destination.host, destination.subset, host.ports[0].number)
    rules = view.rules_of.get(destination.host, ())
    whose = destination.subset or destination.host
    parts: dict[str, tuple[str, Any]] = {
        "load_balancer": ("loadBalancer", _load_balancer),
        "outlier_detection": ("outlierDetection", _outlier_detection),
        "connection_pool": ("connectionPool", _connection_pool),
        "tls": ("tls", _tls),
    }
    absent = {
        "load_balancer": "LEAST_REQUEST of two drawn by lot",
        "outlier_detection": "no endpoint is left out for failing",
        "connection_pool": "no limits",
        "tls": "plain text",
    }
    for name, (yaml, say) in parts.items():
        given = next(
            ((each, part) for each in found if (part := getattr(each.policy, name)) is not None),
            None,
        )
        if given is None:
            yield f"{whose}: {absent[name]} ({_DEFAULT})"
        else:
            layer, part = given
            yield f"{whose}: {say(part)} ({layer.rule} {layer.path}.{yaml})"
    for each in rules:
        if each.annotations.load_balancer is not None:
            option = each.annotations.load_balancer.value
            yield f"{whose}: load balancing by {option} (annotation tidegate.dev/load-balancer)"
        if each.annotations.always_eject_one_host:
            yield f"{whose}: one endpoint may always be ejected (annotation of {each.name})"


def _load_balancer(balancer: LoadBalancer) -> str:
    hashed = balancer.consistent_hash
    if hashed is None:
        simple = balancer.simple.value if balancer.simple else "LEAST_REQUEST"
        words = f"{simple} among its endpoints"
    else:
        source = f"query parameter {hashed.http_query_parameter_name}"
        if hashed.http_header_name is not None:
            source = f"header {hashed.http_header_name}"
        elif hashed.http_cookie is not None:
            source = f"cookie {hashed.http_cookie.name}"
        elif hashed.use_source_ip:
            source = "address"
        words = f"the same {source} to the same endpoint"
    warm = balancer.warmup.duration if balancer.warmup else balancer.warmup_duration_secs
    return words + (f", new ones warmed up for {duration_text(warm)}" if warm else "")


def _outlier_detection(detection: OutlierDetection) -> str:
    errors = detection.consecutive_5xx_errors
    ejected = detection.base_ejection_time or dt.timedelta(seconds=30)
    share = detection.max_ejection_percent
    return (
        f"an endpoint is left out for {duration_text(ejected)} after "
        f"{5 if errors is None else errors} failures in a row, at most "
        f"{10 if share is None else share} % of them"
    )


def _connection_pool(pool: ConnectionPool) -> str:
    limits = {
        "connections": pool.tcp.max_connections if pool.tcp else None,
        "requests at a time": pool.http.http2_max_requests if pool.http else None,
        "requests waiting": pool.http.http1_max_pending_requests if pool.http else None,
        "requests a connection": pool.http.max_requests_per_connection if pool.http else None,
        "retries at a time": pool.http.max_retries if pool.http else None,
    }
    words = [f"{value} {name}" for name, value in limits.items() if value]
    connect = pool.tcp.connect_timeout if pool.tcp else None
    if connect is not None:
        words.append(f"{duration_text(connect)} to connect")
    return "at most " + ", ".join(words) if words else "no limits"


def _tls(tls: ClientTls) -> str:
    return f"TLS mode {tls.mode.value}"
