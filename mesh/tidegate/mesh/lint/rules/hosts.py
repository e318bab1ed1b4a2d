"""Rules about hosts, endpoints and subsets."""

import itertools
from collections.abc import Iterator

from tidegate.istio.destination_rule import ClientTlsMode
from tidegate.istio.service_entry import PortProtocol, ServiceEntry, ServicePort
from tidegate.istio.virtual_service import Destination
from tidegate.mesh.compiler.settings import OWN_NAMESPACE
from tidegate.mesh.lint.findings import Finding, Severity, rule
from tidegate.mesh.lint.view import MeshView, Route

__all__: list[str] = []


@rule("host-defined-twice", Severity.ERROR, "entries of two namespaces define one host")
def host_defined_twice(view: MeshView) -> Iterator[Finding]:
    """Entries without effect, because an entry of another namespace defines the host."""
    entries = sorted(
        view.objects.service_entries.values(),
        key=lambda each: (each.name.namespace, each.name.name),
    )
    first: dict[str, ServiceEntry] = {}
    for entry in entries:
        for index, host in enumerate(entry.hosts):
            other = first.setdefault(host, entry)
            if _meet(other, entry):
                yield Finding(
                    entry.name,
                    f"spec.hosts[{index}]",
                    f"{other.name} defines {host} in another namespace, and only that one counts",
                    "define it in one namespace, with all its endpoints",
                )


def _meet(one: ServiceEntry, other: ServiceEntry) -> bool:
    """Whether some proxy sees the entries of two namespaces."""
    private = one.export_to == other.export_to == OWN_NAMESPACE
    return one.name.namespace != other.name.namespace and not private


@rule(
    "selects-no-workload",
    Severity.WARNING,
    "a workloadSelector finds none of the WorkloadEntries of its namespace",
)
def selects_no_workload(view: MeshView) -> Iterator[Finding]:
    """Hosts without endpoints, where the objects hold other workloads."""
    for entry in view.objects.service_entries.values():
        wanted = entry.workload_selector
        some = any(
            each.name.namespace == entry.name.namespace
            for each in view.objects.workload_entries.values()
        )
        if wanted and some and not view.workloads.of(entry):
            labels = ", ".join(f"{key}={value}" for key, value in wanted.items())
            yield Finding(
                entry.name,
                "spec.workloadSelector.labels",
                f"no WorkloadEntry has {labels}: every request to {entry.hosts[0]} gets 503",
                "correct the labels, or add a WorkloadEntry that has them",
            )


@rule("empty-subset", Severity.WARNING, "the labels of a subset select no endpoint")
def empty_subset(view: MeshView) -> Iterator[Finding]:
    """Subsets without endpoints."""
    for each in view.objects.destination_rules.values():
        for index, subset in enumerate(each.subsets):
            if view.endpoints(each.host, subset.name) == ():
                labels = ", ".join(f"{key}={value}" for key, value in subset.labels.items())
                yield Finding(
                    each.name,
                    f"spec.subsets[{index}].labels",
                    f"no endpoint of {each.host} has {labels}: a route to {subset.name} gets 503",
                    "correct the labels, or start an endpoint that has them",
                )


@rule("overlapping-subsets", Severity.WARNING, "an endpoint belongs to two subsets")
def overlapping_subsets(view: MeshView) -> Iterator[Finding]:
    """Subsets that share endpoints, so that weights are not shares of versions."""
    for each in view.objects.destination_rules.values():
        for (_, one), (index, other) in itertools.combinations(enumerate(each.subsets), 2):
            first = view.endpoints(each.host, one.name) or ()
            second = view.endpoints(each.host, other.name) or ()
            both = [endpoint.address for endpoint in first if endpoint in second]
            if not both and one.labels == other.labels:
                both = ["every endpoint with these labels"]
            if both:
                yield Finding(
                    each.name,
                    f"spec.subsets[{index}].labels",
                    f"{both[0]} is in {one.name} and in {other.name}: it gets the shares of both, "
                    "and their metrics cannot be separated",
                    "give each version a label of its own",
                )


@rule("endpoint-twice", Severity.WARNING, "a host has one endpoint twice")
def endpoint_twice(view: MeshView) -> Iterator[Finding]:
    """Endpoints of a ServiceEntry that are the same address and port."""
    for entry in view.objects.service_entries.values():
        seen: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
        for index, each in enumerate(entry.endpoints):
            key = (each.address, tuple(sorted(each.ports.items())))
            before = seen.setdefault(key, index)
            if before != index:
                yield Finding(
                    entry.name,
                    f"spec.endpoints[{index}]",
                    f"{each.address} is endpoints[{before}] already: it gets the requests of two "
                    "endpoints",
                    "remove one of the two, or give them ports of their own",
                )


@rule(
    "endpoint-without-subset",
    Severity.WARNING,
    "every route to a host names a subset, and an endpoint is in none of them",
)
def endpoint_without_subset(view: MeshView) -> Iterator[Finding]:
    """Endpoints that get no requests."""
    for host in view.hosts.values():
        sent = view.sent_to.get(host.name, ())
        named = {destination.subset for _, destination, share in sent if share > 0}
        if not named or None in named or host.entry is None or host.endpoints is None:
            continue
        used = [one for name in named if name for one in view.endpoints(host.name, name) or ()]
        idle = [each for each in host.endpoints if each not in used]
        if idle:
            yield Finding(
                host.entry.name,
                "",
                f"{idle[0].address} {dict(idle[0].labels)} is in no subset that a route names: it "
                "gets no requests",
                "label it, or give its subset a weight",
            )


@rule(
    "undeclared-protocol",
    Severity.ERROR,
    "a port that routes use does not declare gRPC or HTTP",
)
def undeclared_protocol(view: MeshView) -> Iterator[Finding]:
    """Ports at which proxies see only connections, though routes are for requests."""
    for entry, index, port, sent in _used_ports(view):
        if port.protocol is not None and (port.protocol.routed or port.protocol in _SECURED):
            continue
        declared = port.protocol.value if port.protocol else "no protocol"
        words = "Envoy calls it by HTTP/1.1, which gRPC servers do not accept"
        if any(route.for_clients_in_mesh for route, _ in sent):
            words = (
                "proxies see no requests, all requests of a connection go to one endpoint, and "
                "weights and retries have no effect"
            )
        yield Finding(
            entry.name,
            f"spec.ports[{index}].protocol",
            f"the port declares {declared}: {words}",
            f"write 'protocol: {PortProtocol.GRPC.value}', or HTTP for HTTP servers",
        )


@rule(
    "plain-text-to-tls",
    Severity.ERROR,
    "a route sends plain text to a port that declares TLS",
)
def plain_text_to_tls(view: MeshView) -> Iterator[Finding]:
    """Ports with TLS that routes use and for which no DestinationRule sets TLS."""
    for entry, index, port, sent in _used_ports(view):
        if port.protocol not in _SECURED:
            continue
        plain = [each for _, each in sent if not _begins_tls(view, each)]
        if plain:
            host = plain[0].host
            yield Finding(
                entry.name,
                f"spec.ports[{index}].protocol",
                f"the port declares {port.protocol.value}, and routes send {host} requests in "
                "plain text: the server closes the connection, 503",
                f"set TLS in a DestinationRule of {host}: 'trafficPolicy: {{portLevelSettings: "
                f"[{{port: {{number: {port.number}}}, tls: {{mode: SIMPLE}}}}]}}'",
            )


_SECURED = (PortProtocol.HTTPS, PortProtocol.TLS)


def _begins_tls(view: MeshView, destination: Destination) -> bool:
    tls = view.tls_of(destination)
    return tls is not None and tls.mode is not ClientTlsMode.DISABLE


def _used_ports(
    view: MeshView,
) -> Iterator[tuple[ServiceEntry, int, ServicePort, list[tuple[Route, Destination]]]]:
    """Ports to which routes send requests: entry, index, port, and the routes."""
    for entry in view.objects.service_entries.values():
        sent = [each for host in entry.hosts for each in view.sent_to.get(host, ())]
        for index, port in enumerate(entry.ports):
            used = [
                (route, destination)
                for route, destination, _ in sent
                if view.port_of(destination) is port
            ]
            if used:
                yield entry, index, port, used


@rule("unselected-workload", Severity.WARNING, "no ServiceEntry selects a WorkloadEntry")
def unselected_workload(view: MeshView) -> Iterator[Finding]:
    """WorkloadEntries that are endpoints of no host."""
    selected = {
        each.name
        for entry in view.objects.service_entries.values()
        for each in view.workloads.of(entry)
    }
    for each in view.objects.workload_entries.values():
        if each.name not in selected:
            yield Finding(
                each.name,
                "spec.labels",
                "it is an endpoint of no host and gets no requests",
                "give it the labels of a ServiceEntry's workloadSelector in its namespace",
            )


@rule("rule-for-unknown-host", Severity.WARNING, "a DestinationRule is for a host nothing defines")
def rule_for_unknown_host(view: MeshView) -> Iterator[Finding]:
    """DestinationRules without a host."""
    for each in view.objects.destination_rules.values():
        if each.host not in view.hosts:
            yield Finding(
                each.name,
                "spec.host",
                f"{each.host} is unknown: the rule has no effect",
                "define the host in a ServiceEntry, or correct its name",
            )


@rule("two-rules", Severity.WARNING, "two DestinationRules are for one host in one namespace")
def two_rules(view: MeshView) -> Iterator[Finding]:
    """Hosts whose policies come from several objects."""
    for host, rules in view.rules_of.items():
        for one, other in itertools.combinations(rules, 2):
            if one.name.namespace == other.name.namespace:
                together = one.export_to == other.export_to
                yield Finding(
                    other.name,
                    "spec.host",
                    f"{one.name} is for {host} too: "
                    + (
                        "subsets are merged, and of two policies istiod takes that of the older "
                        "object"
                        if together
                        else "their 'exportTo' differs, so only one of them counts: on a "
                        "cluster the younger, here the one whose name comes last"
                    ),
                    "put both into one object",
                )


@rule("gateway-without-routes", Severity.WARNING, "no VirtualService is for a gateway")
def gateway_without_routes(view: MeshView) -> Iterator[Finding]:
    """Gateways that answer every request with 404."""
    used = {
        gateway
        for virtual_service in view.objects.virtual_services.values()
        for gateway in virtual_service.gateways
    }
    for name, gateway in view.gateways.items():
        if name not in used:
            yield Finding(
                gateway.name,
                "",
                "every request there gets 404 (UNIMPLEMENTED)",
                f"name it in the 'gateways' of a VirtualService: {name}",
            )


@rule(
    "gateway-api-route",
    Severity.WARNING,
    "the files have routes of the Gateway API and objects of Istio",
)
def gateway_api_route(view: MeshView) -> Iterator[Finding]:
    """Routes that are not compiled here."""
    for each in view.ignored:
        if each.kind in ("GRPCRoute", "HTTPRoute"):
            yield Finding(
                each,
                "",
                "it has no effect here; on a cluster its mix with VirtualServices is undefined",
                "write its rules into a VirtualService",
            )
