"""Rules about routes: destinations, weights, retries, timeouts and faults."""

from collections.abc import Iterator

from tidegate.istio.editing.sticky_routes import is_sticky_route
from tidegate.istio.scalars import duration_text
from tidegate.istio.service_entry import PortProtocol
from tidegate.istio.shapes import StringMatchKind
from tidegate.istio.virtual_service import Destination, HttpMatchRequest
from tidegate.mesh.lint.findings import Finding, Severity, rule
from tidegate.mesh.lint.match_coverage import matches_of, may_match
from tidegate.mesh.lint.view import MeshView, Route

__all__: list[str] = []

_NOT_TO_BE_REPEATED = (
    "/tidegate.llm.v1.LlmService/Generate",
    "/tidegate.llm.v1.LlmService/Chat",
    "/tidegate.llm.v1.LlmService/Complete",
    "/tidegate.vision.v1.VisionService/ClassifyStream",
    "/inference.GRPCInferenceService/ModelStreamInfer",
)
"""Methods that stream, or that compute for seconds with another result each time."""


def _places(view: MeshView) -> Iterator[tuple[Route, str, Destination, float]]:
    """Every destination: route, path, destination, and share of requests (or of copies)."""
    for route in view.routes:
        for index, destination, share in route.shares():
            yield route, f"{route.path}.route[{index}].destination", destination, share
        for path, destination, percentage in route.mirrors():
            yield route, f"{route.path}.{path}", destination, percentage / 100


@rule("unknown-host", Severity.ERROR, "a route sends requests to a host that nothing defines")
def unknown_host(view: MeshView) -> Iterator[Finding]:
    """Destinations that no ServiceEntry and no Service defines."""
    for route, path, destination, _ in _places(view):
        if destination.host not in view.hosts:
            yield Finding(
                route.virtual_service.name,
                f"{path}.host",
                f"{destination.host} is unknown: requests get 503 (UNAVAILABLE), flag NC",
                "define it in a ServiceEntry, or correct its name",
            )


@rule("missing-subset", Severity.ERROR, "a route names a subset that no DestinationRule defines")
def missing_subset(view: MeshView) -> Iterator[Finding]:
    """Subsets that routes name and that no DestinationRule defines."""
    for route, path, destination, _ in _places(view):
        if destination.subset is None or view.subset(destination.host, destination.subset):
            continue
        rules = view.rules_of.get(destination.host, ())
        known = sorted({one.name for each in rules for one in each.subsets})
        names = " or ".join(str(each.name) for each in rules)
        fix = f"add it to {names or f'a DestinationRule of {destination.host}'}"
        yield Finding(
            route.virtual_service.name,
            f"{path}.subset",
            f"{destination.host} has no subset {destination.subset}: requests get 503, flag NC",
            f"{fix}, or name one of {', '.join(known)}" if known else fix,
        )


@rule(
    "weight-on-empty-subset",
    Severity.ERROR,
    "a route gives requests to a subset without endpoints",
)
def weight_on_empty_subset(view: MeshView) -> Iterator[Finding]:
    """Shares of requests for which there is no endpoint."""
    for route, path, destination, share in _places(view):
        if share > 0 and view.endpoints(destination.host, destination.subset) == ():
            whose = destination.subset or destination.host
            yield Finding(
                route.virtual_service.name,
                path,
                f"{share * 100:.4g} % of the requests go to {whose}, which has no endpoint: 503, "
                "flag UH",
                f"start an endpoint of {whose}, or send it nothing",
            )


@rule("unknown-port", Severity.ERROR, "a destination names a port that its host does not have")
def unknown_port(view: MeshView) -> Iterator[Finding]:
    """Ports that do not exist, and ports left out where the host has several."""
    for route, path, destination, _ in _places(view):
        host = view.hosts.get(destination.host)
        numbers = [port.number for port in host.ports] if host is not None else []
        words = ", ".join(map(str, numbers))
        if destination.port is None and len(numbers) > 1 and not route.for_clients_in_mesh:
            yield Finding(
                route.virtual_service.name,
                path,
                f"{destination.host} has the ports {words}, and the destination names none",
                "add 'port: {number: …}'",
            )
        if destination.port is not None and numbers and destination.port not in numbers:
            yield Finding(
                route.virtual_service.name,
                f"{path}.port",
                f"{destination.host} has no port {destination.port}: requests get 503, flag NC",
                f"write one of {words}",
            )


@rule(
    "destination-twice",
    Severity.WARNING,
    "a rule names one destination twice",
)
def destination_twice(view: MeshView) -> Iterator[Finding]:
    """Equal destinations of one rule: their weights add up, and copies are doubled."""
    for route in view.routes:
        weights: dict[Destination, list[int]] = {}
        for index, each in enumerate(route.rule.route):
            before = weights.setdefault(each.destination, [])
            before.append(each.weight)
            if len(before) > 1:
                sums = " + ".join(map(str, before))
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.route[{index}].destination",
                    f"{_whose(each.destination)} is in the rule already: its weights add up, "
                    f"{sums} = {sum(before)}",
                    f"write it once with 'weight: {sum(before)}', or name another subset",
                )
        copies: set[Destination] = set()
        for path, destination, _ in route.mirrors():
            if destination in copies:
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.{path}",
                    f"{_whose(destination)} is a mirror of the rule already: it gets every copy "
                    "twice",
                    "remove one of the two",
                )
            copies.add(destination)


def _whose(destination: Destination) -> str:
    subset = f"subset {destination.subset} of " if destination.subset else ""
    port = f" port {destination.port}" if destination.port is not None else ""
    return f"{subset}{destination.host}{port}"


@rule(
    "default-retries",
    Severity.WARNING,
    "gRPC methods that must not be repeated are retried by default",
)
def default_retries(view: MeshView) -> Iterator[Finding]:
    """Routes that keep Istio's default retries for methods that must not be retried."""
    for route in view.routes:
        retries = route.rule.retries
        chosen = retries is not None and (retries.attempts == 0 or retries.retry_on is not None)
        repeated = None if chosen or not route.rule.route else _repeated(view, route)
        if repeated is not None:
            often = "twice by default" if retries is None else f"{retries.attempts} times"
            yield Finding(
                route.virtual_service.name,
                route.path if retries is None else f"{route.path}.retries",
                f"Istio retries {often}, on 'unavailable' too: {repeated} begins again after a "
                "server gave up on it",
                "write 'retries: {attempts: 0}', or 'attempts: 2' with 'retryOn: "
                "connect-failure,refused-stream' for what no server has seen",
            )


def _repeated(view: MeshView, route: Route) -> str | None:
    """The method that retries must not repeat; None where none is known."""
    protocols = {_protocol(view, each.destination) for each in route.rule.route}
    if not protocols & {None, *_GRPC, PortProtocol.HTTP2}:
        return None
    conditions = matches_of(route.rule)
    hosts = " ".join(each.destination.host.split(".")[0] for each in route.rule.route)
    for method in _NOT_TO_BE_REPEATED:
        service = method.removeprefix("/").split("/")[0]
        words = service.split(".")
        word = words[1] if words[0] == "tidegate" else words[0]
        if any(_asks_for(each, words, method) for each in conditions) or (
            word in hosts and any(may_match(each, method) for each in conditions)
        ):
            return method
    # Methods of other servers are unknown. A rule that names one was written for it.
    named = all(
        each.uri is not None and each.uri.kind is StringMatchKind.EXACT for each in conditions
    )
    return None if named or not protocols & {*_GRPC} else "a stream, or a call that takes long,"


_GRPC = (PortProtocol.GRPC, PortProtocol.GRPC_WEB)


def _protocol(view: MeshView, destination: Destination) -> PortProtocol | None:
    """The protocol of a destination; None where it is unknown."""
    port = view.port_of(destination)
    if port is None:
        return None
    http2 = port.protocol is PortProtocol.HTTP2
    return PortProtocol.GRPC if http2 and port.name.startswith("grpc") else port.protocol


def _asks_for(match: HttpMatchRequest, words: list[str], method: str) -> bool:
    """Whether a condition is for paths of a gRPC package, and takes a method of it."""
    if match.uri is None or match.uri.kind is StringMatchKind.REGEX:
        return False
    package = ".".join(words[:2]) if words[0] == "tidegate" else words[0]
    return match.uri.value.removeprefix("/").startswith(package) and may_match(match, method)


_BEGUN = frozenset({"5xx", "gateway-error", "reset", "retriable-4xx"})
"""Conditions of retries that can hold after a server has begun a request."""


@rule(
    "retried-posts",
    Severity.WARNING,
    "plain HTTP requests that a server may have begun are retried",
)
def retried_posts(view: MeshView) -> Iterator[Finding]:
    """Retries that repeat requests that are not idempotent."""
    for route in view.routes:
        retries = route.rule.retries
        if retries is None or retries.attempts == 0 or retries.retry_on is None:
            continue
        words = [each.strip() for each in retries.retry_on.split(",")]
        begun = [each for each in words if each in _BEGUN or each.isdigit()]
        plain = any(
            _protocol(view, each.destination) in (PortProtocol.HTTP, PortProtocol.HTTPS)
            for each in route.rule.route
        )
        if begun and plain and not all(_is_safe(each) for each in matches_of(route.rule)):
            yield Finding(
                route.virtual_service.name,
                f"{route.path}.retries.retryOn",
                f"on {begun[0]} a POST is retried that a server may have processed: it is done "
                "twice",
                "write 'connect-failure,refused-stream', or make a rule of its own for 'method: "
                "{exact: GET}'",
            )


def _is_safe(match: HttpMatchRequest) -> bool:
    """Whether a condition is for a method that may be repeated (RFC 9110, 9.2.2)."""
    method = match.method
    return (
        method is not None
        and method.kind is StringMatchKind.EXACT
        and method.value in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE")
    )


@rule(
    "timeout-under-p99",
    Severity.WARNING,
    "a timeout is shorter than the 99th percentile of response times",
)
def timeout_under_p99(view: MeshView) -> Iterator[Finding]:
    """Timeouts that end more than one request in a hundred."""
    for route in view.routes:
        retries = route.rule.retries
        limits = [("timeout", route.rule.timeout)]
        if retries is not None:
            limits.append(("retries.perTryTimeout", retries.per_try_timeout))
        known = [
            (p99, destination.host)
            for _, destination, share in route.shares()
            if share > 0 and (p99 := view.p99_of(destination.host)) is not None
        ]
        for name, limit in limits:
            if limit is not None and known and limit < max(known)[0]:
                p99, host = max(known)
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.{name}",
                    f"{host} takes {duration_text(p99)} at its 99th percentile: more than one "
                    f"request in a hundred is ended after {duration_text(limit)}",
                    f"write more than {duration_text(p99)}, or remove it: clients have deadlines",
                )


@rule("fault-for-nobody", Severity.WARNING, "a fault is declared, and no request gets it")
def fault_for_nobody(view: MeshView) -> Iterator[Finding]:
    """Faults whose percentage is 0, which is the default."""
    for route in view.routes:
        fault = route.rule.fault
        if fault is None:
            continue
        for name, part in (("delay", fault.delay), ("abort", fault.abort)):
            if part is not None and part.percentage == 0:
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.fault.{name}",
                    "no request gets it: its percentage is 0, which is Istio's default",
                    "add 'percentage: {value: N}', or remove it",
                )


@rule(
    "hash-without-sticky",
    Severity.WARNING,
    "a consistent hash keeps callers at an endpoint, and weights move them between subsets",
)
def hash_without_sticky(view: MeshView) -> Iterator[Finding]:
    """Weighted routes between subsets whose DestinationRule hashes callers to endpoints."""
    for route in view.routes:
        shared = [destination for _, destination, share in route.shares() if share > 0]
        if len(shared) < 2 or route.virtual_service.annotations.sticky is not None:
            continue
        for destination in shared:
            layers = view.policies(destination.host, destination.subset, destination.port)
            balancers = [each.policy.load_balancer for each in layers if each.policy.load_balancer]
            if balancers and balancers[0].consistent_hash is not None:
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.route",
                    f"{destination.host} hashes callers to endpoints, but Envoy draws the subset "
                    "anew for each request: a caller moves back and forth between versions",
                    "annotate 'tidegate.dev/sticky: header:NAME' or cookie:NAME, as is hashed",
                )
                break


@rule(
    "sticky-on-kubernetes",
    Severity.WARNING,
    "an annotation keeps users on one version of a Service of Kubernetes, where istiod routes",
)
def sticky_on_kubernetes(view: MeshView) -> Iterator[Finding]:
    """Sticky weights of hosts that only a cluster defines."""
    for route in view.routes:
        # The router has an EnvoyFilter for routes with such names.
        if route.virtual_service.annotations.sticky is None or is_sticky_route(route.rule):
            continue
        for destination in dict.fromkeys(
            each.host for _, each, share in route.shares() if 0 < share < 1
        ):
            host = view.hosts.get(destination)
            if host is not None and host.entry is None:
                yield Finding(
                    route.virtual_service.name,
                    f"{route.path}.route",
                    f"istiod does not read 'tidegate.dev/sticky': users of {destination} change "
                    "between versions at each request",
                    "let a Rollout with 'write: own' or 'write: delegate' keep them on a version, "
                    "divide users by matches on a header or a cookie, or remove the annotation",
                )
