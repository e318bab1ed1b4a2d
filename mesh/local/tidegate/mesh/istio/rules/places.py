"""Rules for gateways and hosts: a Gateway, a ServiceEntry, a WorkloadEntry."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tidegate.mesh.istio import gateway as gw
from tidegate.mesh.istio import service_entry as se
from tidegate.mesh.istio.rules.complaint import Complaint, export_to, twice
from tidegate.mesh.istio.scalars import is_ip_address, is_label, is_subdomain
from tidegate.mesh.istio.shapes import Message

__all__ = ["PLACE_RULES"]


def _gateway(message: gw.Gateway) -> Iterator[Complaint]:
    if not message.servers:
        yield Complaint("servers", "is empty", "add a server")
    names = [server.port.name for server in message.servers]
    yield from twice(names, "servers[{}].port.name", "the name of a port")
    yield from twice(
        [server.name for server in message.servers if server.name], "servers[{}].name", "server"
    )


def _server(message: gw.Server) -> Iterator[Complaint]:
    if not message.hosts:
        yield Complaint("hosts", "is empty", "name domains, or '*'")
    for index, host in enumerate(message.hosts):
        namespace, slash, domain = host.rpartition("/")
        known = not slash or namespace in ("*", ".") or is_label(namespace)
        if not known or not (domain == "*" or is_subdomain(domain.lower(), wildcard=True)):
            fix = "write a domain, '*', or namespace/domain"
            yield Complaint(f"hosts[{index}]", f"{host!r} is not a domain", fix)
    secure = message.port.protocol is gw.GatewayProtocol.HTTPS
    tls = message.tls
    if secure and (tls is None or tls.mode is None):
        yield Complaint("tls", "is missing for HTTPS", "add 'tls' with mode SIMPLE and files")
    if not secure and tls is not None and tls != gw.ServerTls(https_redirect=True):
        fix = "write protocol HTTPS, or keep only httpsRedirect"
        yield Complaint("tls", f"has no effect with {message.port.protocol.value}", fix)


def _server_tls(message: gw.ServerTls) -> Iterator[Complaint]:
    if message.mode is not gw.ServerTlsMode.MUTUAL:
        if message.ca_crl or message.ca_certificates or message.subject_alt_names:
            problem = "clients' certificates are checked in mode MUTUAL only"
            yield Complaint("", problem, "write mode MUTUAL")
        if message.mode is None:
            return
    needed = [("server_certificate", "serverCertificate"), ("private_key", "privateKey")]
    if message.mode is gw.ServerTlsMode.MUTUAL:
        needed.append(("ca_certificates", "caCertificates"))
    for name, yaml in needed:
        if getattr(message, name) is None:
            yield Complaint(yaml, f"is missing in mode {message.mode.value}", "name its file")


def _service_entry(message: se.ServiceEntry) -> Iterator[Complaint]:
    if not message.hosts:
        yield Complaint("hosts", "is empty", "name the host")
    for index, host in enumerate(message.hosts):
        if host.startswith("*"):
            yield Complaint(f"hosts[{index}]", "an entry is for single hosts", "name it in full")
    yield from twice(message.hosts, "hosts[{}]", "host")
    if not message.ports:
        yield Complaint("ports", "is empty", "add the port that clients call")
    yield from twice([port.name for port in message.ports], "ports[{}].name", "port")
    yield from twice([port.number for port in message.ports], "ports[{}].number", "port")
    yield from export_to(message.export_to)
    selected = message.workload_selector is not None
    if selected and message.endpoints:
        yield Complaint("workloadSelector", "cannot stand beside 'endpoints'", "keep one")
    if selected and not message.workload_selector:
        yield Complaint("workloadSelector.labels", "is empty: selects every workload", "add labels")
    static = message.resolution is se.Resolution.STATIC
    if static and not selected and not message.endpoints:
        fix = "add 'endpoints', or a 'workloadSelector'"
        yield Complaint("", "has no endpoints and selects none", fix)
    names = {port.name for port in message.ports}
    for index, endpoint in enumerate(message.endpoints):
        for name in endpoint.ports.keys() - names:
            fix = f"known are {', '.join(sorted(names))}"
            yield Complaint(f"endpoints[{index}].ports.{name}", "is no port of the host", fix)
        if static and not is_ip_address(endpoint.address):
            fix = "write an IP address, or resolution DNS"
            yield Complaint(
                f"endpoints[{index}].address", f"{endpoint.address!r} is not an IP address", fix
            )


def _workload(message: se.Workload) -> Iterator[Complaint]:
    if not is_ip_address(message.address) and not is_subdomain(message.address.lower()):
        fix = "write an IP address or a DNS name; the port goes into 'ports'"
        yield Complaint("address", f"{message.address!r} is not an address", fix)


PLACE_RULES: Mapping[type[Message], Callable[[Any], Iterator[Complaint]]] = {
    gw.Gateway: _gateway,
    gw.Server: _server,
    gw.ServerTls: _server_tls,
    se.ServiceEntry: _service_entry,
    se.Workload: _workload,
    se.WorkloadEntry: _workload,
}
