"""Records from access log entries as Istio's proxies send them, without custom tags."""

import grpc
import pytest
from entry_messages import messages
from envoy.config.core.v3.base_pb2 import Node
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType, HTTPAccessLogEntry
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.mesh.telemetry import PassedOver, RequestRecord
from tidegate.mesh.telemetry.envoy_config import CLUSTER_TAG
from tidegate.router.istio_log.attribution import MAX_REMEMBERED, Attribution, HostFacts
from tidegate.router.istio_log.entries import istio_parser
from tidegate.router.istio_log.senders import Sender, read_sender

HOST = "vision.models.svc.cluster.local"
AUTHORITY = "vision.example.com"


def node(kind="router", pod="gateway-1", namespace="istio-ingress", **labels):
    made = Node(id=f"{kind}~10.0.0.9~{pod}.{namespace}~{namespace}.svc.cluster.local")
    made.metadata.update({"NAME": pod, "NAMESPACE": namespace, "LABELS": labels})
    return made


GATEWAY = node()
CLIENT = node("sidecar", "client-1", "apps")
SERVER = node("sidecar", "vision-v2-1", "models", app="vision", version="v2")


def call(cluster=f"outbound|8500|v2|{HOST}", route="vision@r1", authority=AUTHORITY, **flags):
    entry = HTTPAccessLogEntry()
    entry.request.authority = authority
    entry.request.path = "/tidegate.vision.v1.VisionService/Classify"
    entry.request.request_headers["content-type"] = "application/grpc"
    entry.response.response_trailers["grpc-status"] = "0"
    entry.response.response_code.value = 200
    common = entry.common_properties
    common.upstream_cluster = cluster
    common.route_name = route
    common.start_time.seconds = 100
    for name, value in flags.items():
        setattr(common.response_flags, name, value)
    return entry


def inbound(authority=AUTHORITY, *, through_proxy=False, cluster="inbound|8500||"):
    entry = call(cluster, "default", authority)
    if through_proxy:
        entry.request.request_headers["x-envoy-attempt-count"] = "1"
    return entry


def failed(authority=AUTHORITY, route="vision@r1", flag="no_healthy_upstream"):
    entry = call("", route, authority, **{flag: True})
    entry.response.response_trailers.clear()
    entry.response.response_headers["grpc-status"] = "14"
    return entry


def record_of(entry, sender=GATEWAY, attribution=None):
    return istio_parser(attribution or Attribution())(sender)(entry)


def test_a_callers_entry_names_version_and_route():
    record = record_of(call())
    assert (record.host, record.port, record.subset) == (HOST, 8500, "v2")
    assert (record.route, record.proxy_role, record.grpc_status) == (
        "vision@r1",
        "router",
        grpc.StatusCode.OK,
    )
    assert not record.server_side


def test_the_semicolon_of_a_name_in_metrics_is_no_part_of_the_host():
    assert record_of(call(f"outbound|8500|v2|{HOST};")).host == HOST


@pytest.mark.parametrize("flag", ["no_healthy_upstream", "no_cluster_found"])
def test_a_request_that_no_version_served_counts_for_the_host_of_its_route(flag):
    attribution = Attribution()
    record_of(call(route="vision@r1"), attribution=attribution)
    record = record_of(failed(route="vision@r2", flag=flag), attribution=attribution)
    assert (record.host, record.subset, record.cluster) == (HOST, "", "")
    assert record.not_served
    assert record.grpc_status is grpc.StatusCode.UNAVAILABLE


def test_the_route_decides_where_one_authority_has_several_hosts():
    attribution = Attribution()
    record_of(call(route="vision"), attribution=attribution)
    record_of(call("outbound|1||llm.models.svc.cluster.local", "llm"), attribution=attribution)
    assert record_of(failed(route="vision@r9"), attribution=attribution).host == HOST
    assert record_of(failed(route="llm"), attribution=attribution).host.startswith("llm")


@pytest.mark.parametrize(
    ("authority", "sender", "host"),
    [
        (HOST, GATEWAY, HOST),
        (f"{HOST}:8500", GATEWAY, HOST),
        ("vision.models", CLIENT, HOST),
        ("vision.models.svc:8500", CLIENT, HOST),
        ("vision", SERVER, HOST),
        ("vision", CLIENT, ""),
        ("other.models.svc.cluster.local", CLIENT, "other.models.svc.cluster.local"),
        ("a.b.models.svc.cluster.local", CLIENT, ""),
        ("other.models", CLIENT, ""),
        ("www.example.com", GATEWAY, ""),
        ("", GATEWAY, ""),
        (":80", GATEWAY, ""),
    ],
)
def test_an_authority_names_a_service_as_kubernetes_does(authority, sender, host):
    attribution = Attribution()
    attribution.facts[HOST] = HostFacts(namespace="models")
    assert record_of(failed(authority, ""), sender, attribution).host == host


def test_a_tag_names_the_cluster_of_a_request_that_nobody_served():
    entry = failed()
    entry.common_properties.custom_tags[CLUSTER_TAG] = f"outbound|8500|v2|{HOST}"
    record = record_of(entry)
    assert (record.host, record.subset, record.not_served) == (HOST, "v2", True)


def test_only_one_of_two_logs_of_a_call_counts():
    attribution = Attribution()
    assert isinstance(record_of(call(), CLIENT, attribution), RequestRecord)
    twin = record_of(inbound(through_proxy=True), SERVER, attribution)
    assert twin is PassedOver.DUPLICATE


def test_a_caller_without_a_proxy_counts_by_the_servers_log():
    record = record_of(inbound(f"{HOST}:8500"), SERVER)
    assert (record.host, record.subset, record.server_side) == (HOST, "v2", True)
    assert (record.mirrored, record.route) == (False, "")
    assert record.proxy.startswith("sidecar~")


@pytest.mark.parametrize(
    ("arrived_at", "subset", "server_side"), [("10.0.0.9", "v2", True), ("10.96.0.1", "", False)]
)
def test_a_refusal_of_a_servers_own_proxy_counts_for_its_version(arrived_at, subset, server_side):
    entry = failed(f"{HOST}:8500", "default", "fault_injected")
    entry.common_properties.downstream_local_address.socket_address.address = arrived_at
    record = record_of(entry, SERVER)
    assert (record.host, record.subset, record.server_side) == (HOST, subset, server_side)
    assert record.grpc_status is grpc.StatusCode.UNAVAILABLE
    assert not record.not_served or not server_side


def test_a_copy_counts_by_the_log_of_the_server_that_got_it():
    attribution = Attribution()
    record_of(call(), attribution=attribution)
    copy = inbound(f"{AUTHORITY}-shadow:80", through_proxy=True)
    attribution.learn(f"{AUTHORITY}:80", "", HOST)
    record = record_of(copy, SERVER, attribution)
    assert (record.host, record.subset, record.mirrored) == (HOST, "v2", True)
    assert record.authority == f"{AUTHORITY}:80"


def test_without_the_suffix_a_version_that_gets_only_copies_tells_a_copy():
    attribution = Attribution()
    attribution.learn(AUTHORITY, "", HOST)
    for shadows, mirrored in (({"v2"}, True), ({"v3"}, None), ((), None)):
        attribution.facts[HOST] = HostFacts(shadows=frozenset(shadows))
        record = record_of(inbound(through_proxy=True), SERVER, attribution)
        if mirrored is None:
            assert record is PassedOver.DUPLICATE
        else:
            assert (record.subset, record.mirrored, record.server_side) == ("v2", True, True)


def test_a_servers_subset_has_the_labels_of_its_pod():
    attribution = Attribution()
    subsets = {"stable": {"version": "v1"}, "canary": {"app": "vision", "version": "v2"}}
    attribution.facts[HOST] = HostFacts(
        namespace="models", selector={"app": "vision"}, subsets=subsets
    )
    # The authority is unknown, and one host alone selects the Pod.
    record = record_of(inbound("vision.test"), SERVER, attribution)
    assert (record.host, record.subset) == (HOST, "canary")


def deadline(header, seconds, details="response_timeout"):
    entry = failed(flag="upstream_request_timeout")
    entry.common_properties.upstream_cluster = f"outbound|8500|v2|{HOST}"
    entry.request.request_headers["grpc-timeout"] = header
    entry.response.response_code_details = details
    entry.common_properties.duration.FromMilliseconds(int(1000 * seconds))
    return entry


def test_a_callers_deadline_is_told_from_the_timeout_of_a_route():
    attribution = Attribution()
    attribution.facts[HOST] = HostFacts(timeouts_s=frozenset({2.0}))
    for header, seconds, code, by_proxy in (
        ("500m", 0.501, grpc.StatusCode.DEADLINE_EXCEEDED, False),
        ("2S", 2.001, grpc.StatusCode.DEADLINE_EXCEEDED, True),
        ("2000m", 2.001, grpc.StatusCode.DEADLINE_EXCEEDED, True),
        ("3S", 2.001, grpc.StatusCode.UNAVAILABLE, True),
    ):
        record = record_of(deadline(header, seconds), attribution=attribution)
        assert (record.grpc_status, record.proxy_timeout) == (code, by_proxy), header


def test_the_memory_of_authorities_is_bounded():
    attribution = Attribution()
    for number in range(MAX_REMEMBERED):
        attribution.learn(f"a{number}", "r", "h")
    assert len(attribution._hosts) == MAX_REMEMBERED
    assert attribution.host_of("a0", "r", Sender()) == ""
    assert attribution.host_of(f"a{MAX_REMEMBERED - 1}", "r", Sender()) == "h"


def test_entries_of_an_upstream_log_are_passed_over():
    entry = call()
    entry.common_properties.access_log_type = AccessLogType.UpstreamEnd
    assert record_of(entry) is PassedOver.INTERMEDIATE


def test_a_node_of_istio_names_pod_namespace_and_labels():
    sender = read_sender(SERVER)
    assert (sender.kind, sender.address) == ("sidecar", "10.0.0.9")
    assert (sender.pod, sender.namespace) == ("vision-v2-1", "models")
    assert sender.labels == {"app": "vision", "version": "v2"}
    assert read_sender(Node(id="sidecar~1~p.n~n.svc.other.domain")).domain == "other.domain"
    assert read_sender(Node(id="laptop")) == Sender(id="laptop")


_VALUES = (
    st.none() | st.text(max_size=9) | st.dictionaries(st.text(max_size=9), st.text(max_size=9))
)
_METADATA = st.dictionaries(st.sampled_from(["NAME", "NAMESPACE", "LABELS"]), _VALUES)


@given(messages(HTTPAccessLogEntry), st.text(max_size=20), _METADATA, st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_entry_and_no_node_makes_the_parser_fail(entry, name, metadata, known):
    sender = Node(id=name)
    sender.metadata.update(metadata)
    attribution = Attribution()
    if known:
        attribution.facts[HOST] = HostFacts(selector={"app": "vision"}, subsets={"v1": {}})
    parse = istio_parser(attribution, {"session"})(sender)
    for cluster in (entry.common_properties.upstream_cluster, "inbound|1||", ""):
        entry.common_properties.upstream_cluster = cluster
        assert isinstance(parse(entry), RequestRecord | PassedOver)
