"""Mistakes in where requests are sent."""

from collections.abc import Iterator

from tidegate.mesh.istio.names import MESH
from tidegate.mesh.istio.scalars import duration_text
from tidegate.mesh.istio.virtual_service import Destination, VirtualService
from tidegate.mesh.lint.covering import covers, may_match
from tidegate.mesh.lint.findings import Finding, Severity, rule
from tidegate.mesh.lint.view import MeshView, Route, covers_domain

__all__ = ["NOT_TO_BE_REPEATED"]

NOT_TO_BE_REPEATED = (
    "/tidegate.llm.v1.LlmService/Generate",
    "/tidegate.llm.v1.LlmService/Chat",
    "/tidegate.llm.v1.LlmService/Complete",
    "/tidegate.vision.v1.VisionService/ClassifyStream",
    "/inference.GRPCInferenceService/ModelStreamInfer",
)
"""Methods that are streams, or that compute for seconds and answer differently each time."""


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
                route.service.name,
                f"{path}.host",
                f"{destination.host} is unknown: requests get 503 (UNAVAILABLE), flag NC",
                "define it in a ServiceEntry, or mend its name",
            )


@rule("missing-subset", Severity.ERROR, "a route names a subset that no DestinationRule defines")
def missing_subset(view: MeshView) -> Iterator[Finding]:
    """Subsets that are named and not defined."""
    for route, path, destination, _ in _places(view):
        if destination.subset is None or view.subset(destination.host, destination.subset):
            continue
        rules = view.rules_of.get(destination.host, ())
        known = sorted({one.name for each in rules for one in each.subsets})
        names = " or ".join(str(each.name) for each in rules)
        fix = f"add it to {names or f'a DestinationRule of {destination.host}'}"
        yield Finding(
            route.service.name,
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
                route.service.name,
                path,
                f"{share * 100:.4g} % of the requests go to {whose}, which has no endpoint: 503, "
                "flag UH",
                f"start an endpoint of {whose}, or send it nothing",
            )


@rule("unknown-port", Severity.ERROR, "a destination names a port that its host does not have")
def unknown_port(view: MeshView) -> Iterator[Finding]:
    """Ports that are named and not there, and ports left out where there are several."""
    for route, path, destination, _ in _places(view):
        host = view.hosts.get(destination.host)
        numbers = [port.number for port in host.ports] if host is not None else []
        words = ", ".join(map(str, numbers))
        if destination.port is None and len(numbers) > 1 and not route.for_clients_in_mesh:
            yield Finding(
                route.service.name,
                path,
                f"{destination.host} has the ports {words}: which is meant is not said",
                "add 'port: {number: …}'",
            )
        if destination.port is not None and numbers and destination.port not in numbers:
            yield Finding(
                route.service.name,
                f"{path}.port",
                f"{destination.host} has no port {destination.port}: requests get 503, flag NC",
                f"write one of {words}",
            )


@rule("unreachable-route", Severity.WARNING, "an earlier rule takes every request of a later one")
def unreachable_route(view: MeshView) -> Iterator[Finding]:
    """Rules behind one that takes all that they would."""
    for service in view.objects.virtual_services.values():
        for index, later in enumerate(service.http):
            for before, earlier in enumerate(service.http[:index]):
                if covers(earlier, later):
                    yield Finding(
                        service.name,
                        f"spec.http[{index}]",
                        f"it never matches: spec.http[{before}] comes first and takes its requests",
                        f"put it before spec.http[{before}], or remove it",
                    )
                    break


@rule("unknown-gateway", Severity.ERROR, "a VirtualService is for a gateway that does not exist")
def unknown_gateway(view: MeshView) -> Iterator[Finding]:
    """Gateways that are named and not defined."""
    known = {f"{name.namespace}/{name.name}" for name in view.objects.gateways}
    for service in view.objects.virtual_services.values():
        for index, gateway in view.gateways_of(service):
            if gateway not in known:
                yield Finding(
                    service.name,
                    f"spec.gateways[{index}]",
                    f"there is no Gateway {gateway}: its rules are never followed there",
                    f"write one of {', '.join(sorted(known))}" if known else "add the Gateway",
                )


@rule(
    "host-not-at-gateway",
    Severity.ERROR,
    "no server of the gateway takes the hosts of a VirtualService",
)
def host_not_at_gateway(view: MeshView) -> Iterator[Finding]:
    """VirtualServices whose domains their gateway does not take."""
    for service in view.objects.virtual_services.values():
        for _, gateway in view.gateways_of(service):
            domains = list(_domains(view, gateway, service))
            for index, host in enumerate(service.hosts):
                if domains and not any(
                    covers_domain(domain, host) or covers_domain(host, domain) for domain in domains
                ):
                    yield Finding(
                        service.name,
                        f"spec.hosts[{index}]",
                        f"{gateway} takes {', '.join(domains)}: requests for {host} get 404",
                        f"add {host} to a server of {gateway}, or name a host that it takes",
                    )


def _domains(view: MeshView, gateway: str, service: VirtualService) -> Iterator[str]:
    """The domains that a gateway takes for the VirtualServices of a namespace."""
    for name, found in view.objects.gateways.items():
        if f"{name.namespace}/{name.name}" != gateway:
            continue
        for server in found.servers:
            for host in server.hosts:
                namespace, _, domain = host.rpartition("/")
                own = name.namespace if namespace == "." else namespace
                if own in ("", "*", service.name.namespace):
                    yield domain


@rule("unknown-virtual-host", Severity.WARNING, "a VirtualService is for a host nobody can call")
def unknown_virtual_host(view: MeshView) -> Iterator[Finding]:
    """Hosts of the mesh that VirtualServices are for and that nothing defines."""
    for service in view.objects.virtual_services.values():
        for index, host in enumerate(service.hosts):
            if MESH in service.gateways and not host.startswith("*") and host not in view.hosts:
                yield Finding(
                    service.name,
                    f"spec.hosts[{index}]",
                    f"clients inside the mesh cannot find {host}, so its rules are not followed",
                    "define it in a ServiceEntry, mend its name, or name a gateway",
                )


@rule(
    "two-virtual-services",
    Severity.ERROR,
    "two VirtualServices are for one host at one gateway",
)
def two_virtual_services(view: MeshView) -> Iterator[Finding]:
    """Hosts whose rules come from several objects, in an order that Istio does not define."""
    first: dict[tuple[str, str], VirtualService] = {}
    for service in view.objects.virtual_services.values():
        for index, host in enumerate(service.hosts):
            for gateway in service.gateways:
                other = first.setdefault((gateway, host), service)
                if other is not service:
                    yield Finding(
                        service.name,
                        f"spec.hosts[{index}]",
                        f"{other.name} is for {host} at {gateway} too: whose rules come first is "
                        "not defined, and inside the mesh one of them is ignored",
                        "put the rules into one object, the more special first",
                    )


@rule(
    "default-retries",
    Severity.WARNING,
    "methods that stream or compute for long are retried because nothing says otherwise",
)
def default_retries(view: MeshView) -> Iterator[Finding]:
    """Routes with Istio's retries to methods that are not to be repeated."""
    for route in view.routes:
        if route.rule.retries is not None or not route.rule.route:
            continue
        methods = [
            method
            for method in NOT_TO_BE_REPEATED
            if not route.rule.match or any(may_match(each, method) for each in route.rule.match)
        ]
        if methods:
            hosts = " ".join(each.destination.host for each in route.rule.route)
            example = max(methods, key=lambda method: method.split(".")[1] in hosts)
            yield Finding(
                route.service.name,
                route.path,
                f"Istio retries twice where nothing is said, on 'unavailable' too: {example} "
                "begins again after a server gave up on it",
                "write 'retries: {attempts: 0}', or 'attempts: 2' with 'retryOn: "
                "connect-failure,refused-stream' for what no server has seen",
            )


@rule(
    "timeout-under-p99", Severity.WARNING, "a timeout is shorter than the model's slowest answers"
)
def timeout_under_p99(view: MeshView) -> Iterator[Finding]:
    """Timeouts that cut off more than a hundredth of the answers."""
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
                    route.service.name,
                    f"{route.path}.{name}",
                    f"{host} takes {duration_text(p99)} at its 99th percentile: more than one "
                    f"request in a hundred is ended after {duration_text(limit)}",
                    f"write more than {duration_text(p99)}, or remove it: clients have deadlines",
                )


@rule("fault-for-nobody", Severity.WARNING, "a fault is declared and no request gets it")
def fault_for_nobody(view: MeshView) -> Iterator[Finding]:
    """Faults whose percentage is 0, as it is where it is left out."""
    for route in view.routes:
        fault = route.rule.fault
        if fault is None:
            continue
        for name, part in (("delay", fault.delay), ("abort", fault.abort)):
            if part is not None and part.percentage == 0:
                yield Finding(
                    route.service.name,
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
    """Splits between subsets where a hash is meant to keep a caller in one place."""
    for route in view.routes:
        shared = [destination for _, destination, share in route.shares() if share > 0]
        if len(shared) < 2 or route.service.annotations.sticky is not None:
            continue
        for destination in shared:
            policies = view.policies(destination.host, destination.subset, destination.port)
            balancers = [each.load_balancer for _, each in policies if each.load_balancer]
            if balancers and balancers[0].consistent_hash is not None:
                yield Finding(
                    route.service.name,
                    f"{route.path}.route",
                    f"{destination.host} hashes callers to endpoints, but the subset is drawn for "
                    "each request: a caller goes back and forth between versions",
                    "annotate 'tidegate.dev/sticky: header:NAME' with the header that is hashed",
                )
                break
