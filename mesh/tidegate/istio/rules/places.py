"""Rules of gateways and hosts: Gateway, ServiceEntry, WorkloadEntry."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tidegate.istio import gateway as gw
from tidegate.istio import service_entry as se
from tidegate.istio.rules.violation import Violation, export_to, labels, twice
from tidegate.istio.scalars import is_host_label, is_ip_address, is_subdomain
from tidegate.istio.shapes import Message

__all__ = ["PLACE_RULES"]

_LONGEST_LABEL: Final = 63


def _gateway(message: gw.Gateway) -> Iterator[Violation]:
    if not message.servers:
        yield Violation("servers", "is empty", "add a server")
    names = [server.port.name for server in message.servers]
    yield from twice(names, "servers[{}].port.name", "the name of a port")
    yield from twice(
        [server.name for server in message.servers if server.name], "servers[{}].name", "server"
    )


def _server(message: gw.Server) -> Iterator[Violation]:
    if not message.hosts:
        yield Violation("hosts", "is empty", "name domains, or '*'")
    for index, host in enumerate(message.hosts):
        namespace, slash, domain = host.rpartition("/")
        known = not slash or namespace in ("*", ".") or is_host_label(namespace)
        short = domain != "*" and "." not in domain
        if short and known and is_host_label(domain):
            fix = "write it in full, as name.namespace.svc.cluster.local"
            yield Violation(
                f"hosts[{index}]", f"{host!r} is a short name, which Istio refuses", fix
            )
        elif not known or not (domain == "*" or is_subdomain(domain, wildcard=True)):
            fix = "write a domain, '*', or namespace/domain"
            yield Violation(f"hosts[{index}]", f"{host!r} is not a domain", fix)
    protocol, tls = message.port.protocol, message.tls
    secure = protocol in (gw.GatewayProtocol.HTTPS, gw.GatewayProtocol.TLS)
    if secure and tls is None:
        fix = "add 'tls' with mode SIMPLE and files"
        yield Violation("tls", f"is missing for {protocol.value}", fix)
    if not secure and tls is not None and tls != gw.ServerTls(https_redirect=True):
        fix = "write protocol HTTPS, or keep only httpsRedirect"
        yield Violation("tls", f"has no effect with {protocol.value}", fix)


def _server_tls(message: gw.ServerTls) -> Iterator[Violation]:
    versions = (message.max_protocol_version, message.min_protocol_version)
    if versions == (gw.TlsVersion.TLSV1_2, gw.TlsVersion.TLSV1_3):
        fix = "write a newer maxProtocolVersion"
        yield Violation("minProtocolVersion", "is newer than maxProtocolVersion", fix)
    mutual = message.mode in (gw.ServerTlsMode.MUTUAL, gw.ServerTlsMode.OPTIONAL_MUTUAL)
    if not mutual:
        if message.ca_crl or message.ca_certificates or message.subject_alt_names:
            problem = "clients' certificates are checked in mode MUTUAL only"
            yield Violation("", problem, "write mode MUTUAL")
        if message.mode is not gw.ServerTlsMode.SIMPLE:
            return
    needed = [("server_certificate", "serverCertificate"), ("private_key", "privateKey")]
    if mutual:
        needed.append(("ca_certificates", "caCertificates"))
    for name, yaml in needed:
        if getattr(message, name) is None:
            mode = message.mode or gw.ServerTlsMode.SIMPLE
            yield Violation(yaml, f"is missing in mode {mode.value}", "name its file")


def _service_entry(message: se.ServiceEntry) -> Iterator[Violation]:
    yield from _entry_hosts(message)
    if not message.ports:
        yield Violation("ports", "is empty", "add the port that clients call")
    yield from twice([port.name for port in message.ports], "ports[{}].name", "port")
    yield from twice([port.number for port in message.ports], "ports[{}].number", "port")
    yield from export_to(message.export_to)
    yield from _selector(message)
    static = message.resolution is se.Resolution.STATIC
    if static and message.workload_selector is None and not message.endpoints:
        fix = "add 'endpoints', or a 'workloadSelector'"
        yield Violation("", "has no endpoints and selects none", fix)
    if message.resolution is se.Resolution.DNS_ROUND_ROBIN and len(message.endpoints) > 1:
        yield Violation(
            "endpoints", "are more than one for DNS_ROUND_ROBIN", "keep one, or write DNS"
        )
    names = {port.name for port in message.ports}
    for index, endpoint in enumerate(message.endpoints):
        for name in endpoint.ports.keys() - names:
            fix = f"known are {', '.join(sorted(names))}"
            yield Violation(f"endpoints[{index}].ports.{name}", "is not a port of the host", fix)
        if static and is_subdomain(endpoint.address):
            fix = "write an IP address, or resolution DNS"
            yield Violation(
                f"endpoints[{index}].address", f"{endpoint.address!r} is not an IP address", fix
            )


def _entry_hosts(message: se.ServiceEntry) -> Iterator[Violation]:
    if not message.hosts:
        yield Violation("hosts", "is empty", "name the host")
    for index, host in enumerate(message.hosts):
        if not host or is_ip_address(host):
            problem = "is an address and not a host" if host else "is empty"
            yield Violation(f"hosts[{index}]", problem, "name the host")
    yield from twice(message.hosts, "hosts[{}]", "host")
    blind = [port.name for port in message.ports if not _tells_hosts_apart(port.protocol)]
    if len(message.hosts) > 1 and blind:
        problem = f"port {blind[0]} cannot tell several hosts apart"
        fix = "declare HTTP, HTTP2, GRPC, HTTPS or TLS, or write an entry for each host"
        yield Violation("hosts[1]", problem, fix)


def _selector(message: se.ServiceEntry) -> Iterator[Violation]:
    if message.workload_selector is None:
        return
    if message.endpoints:
        yield Violation("workloadSelector", "cannot be combined with 'endpoints'", "keep one")
    if not message.workload_selector:
        yield Violation("workloadSelector.labels", "is empty: selects every workload", "add labels")
    for name, value in message.workload_selector.items():
        if not name or "*" in name or "*" in value:
            problem = f"{name!r} with {value!r} selects nothing: there are no wildcards"
            fix = "write the name and value of a label"
            yield Violation("workloadSelector.labels", problem, fix)
        elif len(value) > _LONGEST_LABEL:
            problem = f"the value of {name!r} has {len(value)} characters"
            fix = f"write at most {_LONGEST_LABEL}, as in a label"
            yield Violation("workloadSelector.labels", problem, fix)


def _tells_hosts_apart(protocol: se.PortProtocol | None) -> bool:
    """Returns whether a client of the protocol sends the name of the host."""
    secure = (se.PortProtocol.HTTPS, se.PortProtocol.TLS)
    return protocol is not None and (protocol.routed or protocol in secure)


def _workload(message: se.Workload) -> Iterator[Violation]:
    yield from labels(message.labels, "labels")
    for name in message.ports:
        if not is_host_label(name):
            fix = "use letters, 0-9 and -, at most 63"
            yield Violation(f"ports.{name}", f"{name!r} is not a port name", fix)
    is_socket = message.address.startswith("unix://")
    if not is_socket and not is_ip_address(message.address) and not is_subdomain(message.address):
        fix = "write an IP address or a DNS name; the port goes into 'ports'"
        yield Violation("address", f"{message.address!r} is not an address", fix)


PLACE_RULES: Mapping[type[Message], Callable[[Any], Iterator[Violation]]] = {
    gw.Gateway: _gateway,
    gw.Server: _server,
    gw.ServerTls: _server_tls,
    se.ServiceEntry: _service_entry,
    se.Workload: _workload,
    se.WorkloadEntry: _workload,
}
