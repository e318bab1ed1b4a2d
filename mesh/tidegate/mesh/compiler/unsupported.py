"""Fields and values of Istio that the compiler cannot compile, and what to write instead.

The parser accepts every field and value of Istio, so that objects of a cluster can be read and
edited. If the compiler ignored one of them, a mesh on a laptop would route traffic differently than
a cluster. So the compiler refuses each of them by name, with the reason and the fix.
"""

import dataclasses
import enum
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tidegate.istio import destination_rule as dr
from tidegate.istio import gateway as gw
from tidegate.istio import service_entry as se
from tidegate.istio import virtual_service as vs
from tidegate.istio.objects import IstioObject
from tidegate.istio.reading.documents import ObjectCheck
from tidegate.istio.reading.messages import fields_of
from tidegate.istio.rules import Violation
from tidegate.istio.shapes import Message
from tidegate.mesh.compiler.envoy_limits import ENVOY_LIMITS

__all__ = ["UNSUPPORTED_FIELDS", "UNSUPPORTED_VALUES", "unsupported"]

UNSUPPORTED_FIELDS: Mapping[type[Message], Mapping[str, str]] = {
    vs.HttpMatchRequest: {
        "sourceLabels": (
            "routes by the client's labels need a sidecar at each client; let clients send a "
            "header and match 'headers' instead"
        ),
        "sourceNamespace": (
            "routes by the client's namespace need a sidecar at each client; let clients "
            "send a header and match 'headers' instead"
        ),
        "statPrefix": "Envoy's statistics per route are not kept; remove it",
    },
    vs.HttpRedirect: {
        "prefixRewrite": "it is new in Istio and not supported; write the whole path with 'uri'",
    },
    vs.FaultDelay: {
        "exponentialDelay": "Envoy has no such delay; write 'fixedDelay'",
        "percent": "Istio deprecates it; write 'percentage: {value: N}'",
    },
    vs.FaultAbort: {
        "http2Error": "Envoy cannot abort with an HTTP/2 error code; write 'grpcStatus'",
    },
    vs.CorsPolicy: {
        "allowOrigin": "Istio deprecates it; write 'allowOrigins: [{exact: ORIGIN}]'",
    },
    vs.HttpRoute: {
        "delegate": "routes of several objects are not merged; write them here",
        "mirrorPercent": "Istio deprecates it; write 'mirrorPercentage: {value: N}'",
        "mirror_percent": "Istio deprecates it; write 'mirrorPercentage: {value: N}'",
    },
    vs.VirtualService: {
        "tcp": "only HTTP and gRPC are routed; call the server's port directly",
        "tls": "only HTTP and gRPC are routed; end TLS at a Gateway and write 'http' rules",
    },
    dr.HttpCookie: {
        "attributes": "attributes of the cookie are not supported; remove them",
    },
    dr.LoadBalancer: {
        "localityLbSetting": "a laptop is one locality; remove it",
        "zoneAwareLbSetting": "a laptop is one locality; remove it",
    },
    dr.TcpSettings: {
        "idleTimeout": "it counts for TCP routes only; write 'http.idleTimeout'",
    },
    dr.OutlierDetection: {
        "consecutiveErrors": "Istio deprecates it; write 'consecutive5xxErrors'",
        "outlierDetectionHttpErrorCodes": "it is new in Istio and not supported; remove it",
    },
    dr.ClientTls: {
        "credentialName": "Kubernetes Secrets are not read; name files",
    },
    dr.RetryBudget: {
        "budgetInterval": "Envoy counts the requests in progress; remove it",
    },
    dr.TrafficPolicy: {
        "tunnel": "tunnels are not supported; remove it",
        "proxyProtocol": "gRPC servers do not read the PROXY protocol; remove it",
    },
    dr.DestinationRule: {
        "workloadSelector": "rules for single clients need sidecars; remove it",
    },
    gw.GatewayPort: {
        "targetPort": "Istio deprecates it; write the port in 'number'",
    },
    gw.ServerTls: {
        "credentialName": "Kubernetes Secrets are not read; name files",
        "credentialNames": "Kubernetes Secrets are not read; name files",
        "caCertCredentialName": "Kubernetes Secrets are not read; name files",
        "tlsCertificates": "a server has one certificate; name it in 'serverCertificate'",
        "insecureSkipVerify": "clients' certificates are checked in mode MUTUAL; remove it",
        "verifyCertificateHash": "pinned certificates are not supported; use 'subjectAltNames'",
        "verifyCertificateSpki": "pinned certificates are not supported; use 'subjectAltNames'",
    },
    gw.Server: {
        "bind": "the address to listen on is a setting of the controller; remove it",
        "defaultEndpoint": "Istio does not support it either; remove it",
    },
    se.Workload: {
        "network": "there is one network; remove it",
        "serviceAccount": "endpoints have no identities; remove it",
    },
    se.ServiceEntry: {
        "addresses": "clients call the host by its name, and traffic is not captured; remove it",
        "subjectAltNames": "TLS is set by a policy; write them in the 'tls' of a DestinationRule",
    },
}
"""Fields that the parser keeps as they are: the reason and the fix of each."""

_PROTOCOLS = {
    "HTTP_PROXY": "there are no sidecars with an egress proxy; write HTTP",
    "MONGO": "MongoDB requests are not parsed; write TCP",
    "MYSQL": "MySQL requests are not parsed; write TCP",
    "REDIS": "Redis requests are not parsed; write TCP",
    "UDP": "Istio accepts the value and proxies no UDP; remove the port",
}

UNSUPPORTED_VALUES: Mapping[type[enum.Enum], Mapping[str, str]] = {
    dr.SimpleLoadBalancer: {
        "LEAST_CONN": "Istio deprecates it; write LEAST_REQUEST",
        "PASSTHROUGH": "there is no original destination to forward to; write ROUND_ROBIN",
    },
    dr.ClientTlsMode: {
        "ISTIO_MUTUAL": "there is no Istio certificate authority; write MUTUAL and name files",
    },
    gw.GatewayProtocol: {
        **_PROTOCOLS,
        "TCP": "only HTTP and gRPC are routed; write GRPC",
        "TLS": "only HTTP and gRPC are routed; end TLS with HTTPS",
    },
    gw.ServerTlsMode: {
        "PASSTHROUGH": "only HTTP and gRPC are routed; write SIMPLE or MUTUAL",
        "AUTO_PASSTHROUGH": "only HTTP and gRPC are routed; write SIMPLE or MUTUAL",
        "ISTIO_MUTUAL": "there is no Istio certificate authority; write MUTUAL and name files",
        "OPTIONAL_MUTUAL": "no client certificate is optional; write SIMPLE or MUTUAL",
    },
    gw.TlsVersion: {
        "TLSV1_0": "it is insecure; write TLSV1_2",
        "TLSV1_1": "it is insecure; write TLSV1_2",
    },
    se.PortProtocol: _PROTOCOLS,
    se.Resolution: {
        "NONE": (
            "it is Istio's default, and there is no original destination to forward to; write "
            "STATIC or DNS"
        ),
        "DYNAMIC_DNS": "hosts are declared one by one; write DNS",
    },
}
"""Values of Istio's enums: the reason and the fix of each."""


def _violations(item: IstioObject) -> Iterator[Violation]:
    return _in_message(item, "spec")


unsupported: Final = ObjectCheck(_violations, UNSUPPORTED_VALUES)
"""Yields the fields and values of an object that the compiler cannot compile."""


def _in_message(message: Message, path: str) -> Iterator[Violation]:
    for name in message.opaque:
        yield _opaque(message, name, f"{path}.{name}")
    for limits in (_LIMITS, ENVOY_LIMITS):
        if limit := limits.get(type(message)):
            for each in limit(message):
                yield dataclasses.replace(each, path=f"{path}.{each.path}")
    for name, yaml_name in _inner(type(message)):  # type: ignore[arg-type]  # a class can be hashed
        value = getattr(message, name)
        place = f"{path}.{yaml_name}"
        if isinstance(value, enum.Enum):
            if words := UNSUPPORTED_VALUES[type(value)].get(value.value):
                reason, _, fix = words.rpartition("; ")
                yield Violation(place, f"{value.value} is not supported: {reason}", fix)
        elif isinstance(value, Message):
            yield from _in_message(value, place)
        elif value is not None:
            for index, each in enumerate(value):
                yield from _in_message(each, f"{place}[{index}]")


def _opaque(message: Message, name: str, path: str) -> Violation:
    for each in type(message).__mro__:
        if words := UNSUPPORTED_FIELDS.get(each, {}).get(name):
            reason, _, fix = words.rpartition("; ")
            return Violation(path, f"is not supported: {reason}", fix)
    # Only an object from an API server has such a field.
    return Violation(path, "is not a field that Tidegate knows", "remove it")


@functools.cache
def _inner(message: type[Message]) -> tuple[tuple[str, str], ...]:
    """Returns the fields that may hold a refused value, by their names in Python and YAML."""
    return tuple(
        (shape.name, yaml_name)
        for yaml_name, shape in fields_of(message).items()
        if any(map(_may_refuse, _types_in(shape.type)))
    )


def _may_refuse(kind: type) -> bool:
    return kind in UNSUPPORTED_VALUES or issubclass(kind, Message)


def _types_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for each in typing.get_args(hint):
        yield from _types_in(each)


def _virtual_service(message: vs.VirtualService) -> Iterator[Violation]:
    if not message.hosts:
        problem = (
            "is missing: without hosts another VirtualService delegates to the rules, which is not "
            "supported"
        )
        yield Violation("hosts", problem, "name the hosts")


def _destination(message: vs.Destination) -> Iterator[Violation]:
    if message.host.startswith("*"):
        problem = "a wildcard is not supported: a destination is one host"
        yield Violation("host", problem, "name it in full")


def _destination_rule(message: dr.DestinationRule) -> Iterator[Violation]:
    if message.host.startswith("*"):
        problem = "a wildcard is not supported: a rule is for one host"
        yield Violation("host", problem, "write a rule for each host")


def _consistent_hash(message: dr.ConsistentHash) -> Iterator[Violation]:
    if message.use_source_ip is False:
        fix = "write true, or hash something else"
        yield Violation("useSourceIp", "is not supported as false: nothing is hashed", fix)


def _server(message: gw.Server) -> Iterator[Violation]:
    is_https = message.port.protocol is gw.GatewayProtocol.HTTPS
    if is_https and message.tls is not None and message.tls.mode is None:
        problem = "has no mode: Istio's default PASSTHROUGH is not supported"
        yield Violation("tls", problem, "add 'tls' with mode SIMPLE and files")
    everything = message.hosts.index("*/*") if "*/*" in message.hosts else len(message.hosts)
    for index, host in enumerate(message.hosts):
        if index > everything and "/" in host and host != "*/*":
            problem = (
                "istiod crashes on a host with a namespace after '*/*', which takes every host"
            )
            yield Violation(f"hosts[{index}]", problem, "leave only '*/*'")


def _service_entry(message: se.ServiceEntry) -> Iterator[Violation]:
    for index, host in enumerate(message.hosts):
        if host.startswith("*"):
            problem = "a wildcard is not supported: an entry is for single hosts"
            yield Violation(f"hosts[{index}]", problem, "name it in full")


def _workload(message: se.Workload) -> Iterator[Violation]:
    if message.address.startswith("unix://"):
        fix = "write an IP address or a DNS name"
        yield Violation("address", "is not supported: sockets of this machine are not called", fix)


_LIMITS: Mapping[type[Message], Callable[[Any], Iterator[Violation]]] = {
    vs.VirtualService: _virtual_service,
    vs.Destination: _destination,
    dr.DestinationRule: _destination_rule,
    dr.ConsistentHash: _consistent_hash,
    gw.Server: _server,
    se.ServiceEntry: _service_entry,
    se.Workload: _workload,
    se.WorkloadEntry: _workload,
}
