"""Rules of a DestinationRule and its messages."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tidegate.istio import destination_rule as dr
from tidegate.istio.rules.violation import Violation, at_most_one, export_to, labels, twice
from tidegate.istio.scalars import is_ip_address
from tidegate.istio.shapes import Message

__all__ = ["POLICY_RULES"]


def _destination_rule(message: dr.DestinationRule) -> Iterator[Violation]:
    if is_ip_address(message.host):
        yield Violation("host", "is an address and not a host", "name the host")
    names = [subset.name for subset in message.subsets]
    yield from twice(names, "subsets[{}].name", "subset")
    for index, subset in enumerate(message.subsets):
        yield from labels(subset.labels, f"subsets[{index}].labels")
    yield from export_to(message.export_to)


def _traffic_policy(message: dr.TrafficPolicy) -> Iterator[Violation]:
    if message == dr.TrafficPolicy():
        yield Violation("", "is empty", "remove it")
    ports = [each.port for each in message.port_level_settings]
    yield from twice(ports, "portLevelSettings[{}].port", "port")


def _port_policy(message: dr.PortTrafficPolicy) -> Iterator[Violation]:
    if message == dr.PortTrafficPolicy(port=message.port):
        yield Violation("", "sets nothing but the port", "remove it")


def _load_balancer(message: dr.LoadBalancer) -> Iterator[Violation]:
    yield from at_most_one(message, ("simple", "simple"), ("consistent_hash", "consistentHash"))
    warmups = (("warmup", "warmup"), ("warmup_duration_secs", "warmupDurationSecs"))
    yield from at_most_one(message, *warmups)
    warm = [yaml for name, yaml in warmups if getattr(message, name) is not None]
    if warm and (message.consistent_hash or message.simple is dr.SimpleLoadBalancer.RANDOM):
        fix = "use ROUND_ROBIN or LEAST_REQUEST, or remove it"
        yield Violation(warm[0], "applies to ROUND_ROBIN and LEAST_REQUEST only", fix)


def _consistent_hash(message: dr.ConsistentHash) -> Iterator[Violation]:
    yield from at_most_one(
        message,
        ("http_header_name", "httpHeaderName"),
        ("http_cookie", "httpCookie"),
        ("use_source_ip", "useSourceIp"),
        ("http_query_parameter_name", "httpQueryParameterName"),
        least=1,
    )
    yield from at_most_one(
        message,
        ("ring_hash", "ringHash"),
        ("maglev", "maglev"),
        ("minimum_ring_size", "minimumRingSize"),
    )


def _maglev(message: dr.Maglev) -> Iterator[Violation]:
    size = message.table_size
    if any(size % factor == 0 for factor in range(2, int(size**0.5) + 1)):
        yield Violation("tableSize", f"{size} is not a prime", "write 65537")


def _warmup(message: dr.Warmup) -> Iterator[Violation]:
    if message.aggression == 0:
        yield Violation("aggression", "cannot be 0", "write more than 0; 1 is linear")


def _connection_pool(message: dr.ConnectionPool) -> Iterator[Violation]:
    if message == dr.ConnectionPool():
        yield Violation("", "limits nothing", "add 'http' or 'tcp'")


def _http_settings(message: dr.HttpSettings) -> Iterator[Violation]:
    if message.use_client_protocol and message.h2_upgrade_policy is dr.H2UpgradePolicy.UPGRADE:
        fix = "remove one"
        yield Violation("useClientProtocol", "contradicts h2UpgradePolicy UPGRADE", fix)


def _keep_alive(message: dr.Http2KeepAlive) -> Iterator[Violation]:
    for name in ("interval", "timeout"):
        if getattr(message, name) is None:
            yield Violation(name, "is missing", "add it")


def _outlier_detection(message: dr.OutlierDetection) -> Iterator[Violation]:
    separate = message.split_external_local_origin_errors
    if message.consecutive_local_origin_failures and not separate:
        fix = "add 'splitExternalLocalOriginErrors: true'"
        yield Violation("consecutiveLocalOriginFailures", "has no effect alone", fix)


def _client_tls(message: dr.ClientTls) -> Iterator[Violation]:
    if message.mode is dr.ClientTlsMode.MUTUAL:
        for name, yaml in (
            ("client_certificate", "clientCertificate"),
            ("private_key", "privateKey"),
        ):
            if getattr(message, name) is None:
                yield Violation(yaml, "is missing in mode MUTUAL", "name its file")
    elif message.client_certificate or message.private_key:
        present = "clientCertificate" if message.client_certificate else "privateKey"
        yield Violation(present, f"has no effect in mode {message.mode.value}", "write mode MUTUAL")
    if message.insecure_skip_verify and (message.ca_certificates or message.subject_alt_names):
        fix = "remove it, or what is not checked"
        yield Violation("insecureSkipVerify", "contradicts what is to be checked", fix)


POLICY_RULES: Mapping[type[Message], Callable[[Any], Iterator[Violation]]] = {
    dr.DestinationRule: _destination_rule,
    dr.TrafficPolicy: _traffic_policy,
    dr.PortTrafficPolicy: _port_policy,
    dr.LoadBalancer: _load_balancer,
    dr.ConsistentHash: _consistent_hash,
    dr.Maglev: _maglev,
    dr.Warmup: _warmup,
    dr.ConnectionPool: _connection_pool,
    dr.HttpSettings: _http_settings,
    dr.Http2KeepAlive: _keep_alive,
    dr.OutlierDetection: _outlier_detection,
    dr.ClientTls: _client_tls,
}
