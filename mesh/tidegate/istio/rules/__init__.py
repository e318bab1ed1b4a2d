"""What contradicts itself in a message whose fields are each right: Istio's own validation rules.

They follow istiod's ``pkg/config/validation``, so that what passes here passes there; a few are
stricter, where Istio takes what can never have an effect.
"""

import enum
from collections.abc import Iterator, Mapping

from tidegate.istio import destination_rule as dr
from tidegate.istio import gateway as gw
from tidegate.istio import service_entry as se
from tidegate.istio.rules.complaint import Complaint
from tidegate.istio.rules.places import PLACE_RULES
from tidegate.istio.rules.policies import POLICY_RULES
from tidegate.istio.rules.routes import GRPC_STATUSES, ROUTE_RULES
from tidegate.istio.shapes import Message

__all__ = ["GRPC_STATUSES", "REFUSED_WORDS", "Complaint", "complaints"]

_UNSPOKEN = {
    "HTTP_PROXY": "there are no sidecars with an egress proxy; write HTTP",
    "MONGO": "requests of MongoDB are not looked into; write TCP",
    "MYSQL": "requests of MySQL are not looked into; write TCP",
    "REDIS": "requests of Redis are not looked into; write TCP",
    "UDP": "Istio takes the word and proxies no UDP; remove the port",
}
"""Protocols that Istio's validation takes."""

REFUSED_WORDS: Mapping[type[enum.Enum], Mapping[str, str]] = {
    dr.SimpleLoadBalancer: {
        "LEAST_CONN": "Istio deprecates it; write LEAST_REQUEST",
        "PASSTHROUGH": "there are no original addresses to pass on to; write ROUND_ROBIN",
    },
    dr.ClientTlsMode: {
        "ISTIO_MUTUAL": "there is no certificate authority of Istio; write MUTUAL and name files",
    },
    gw.GatewayProtocol: {
        **_UNSPOKEN,
        "TCP": "only HTTP and gRPC are routed; write GRPC",
        "TLS": "only HTTP and gRPC are routed; end TLS with HTTPS",
    },
    gw.ServerTlsMode: {
        "PASSTHROUGH": "only HTTP and gRPC are routed; write SIMPLE or MUTUAL",
        "AUTO_PASSTHROUGH": "only HTTP and gRPC are routed; write SIMPLE or MUTUAL",
        "ISTIO_MUTUAL": "there is no certificate authority of Istio; write MUTUAL and name files",
        "OPTIONAL_MUTUAL": "a client's certificate is checked or not; write SIMPLE or MUTUAL",
    },
    gw.TlsVersion: {
        "TLSV1_0": "it is broken; write TLSV1_2",
        "TLSV1_1": "it is broken; write TLSV1_2",
    },
    se.PortProtocol: _UNSPOKEN,
    se.Resolution: {
        "NONE": "there are no original addresses to pass on to; write STATIC or DNS",
        "DYNAMIC_DNS": "hosts are declared one by one; write DNS",
    },
}

_RULES = {**ROUTE_RULES, **POLICY_RULES, **PLACE_RULES}


def complaints(message: Message) -> Iterator[Complaint]:
    """What contradicts itself in a message, apart from the messages inside it."""
    rule = _RULES.get(type(message))
    return rule(message) if rule is not None else iter(())
