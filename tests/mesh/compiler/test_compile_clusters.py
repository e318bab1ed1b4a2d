"""Clusters and endpoints of a host, its subsets and its DestinationRules.

Defaults are those of istiod: LEAST_REQUEST, no limits, no outlier detection, no panic.
"""

import asyncio

import grpc
import pytest
from mesh_objects import (
    DOMAIN,
    HTTP_OPTIONS,
    VISION,
    body,
    cluster,
    entry,
    everywhere,
    gateway,
    istio,
    names,
    rule,
    text,
    to,
    virtual,
)

from tidegate.mesh.compiler import EndpointState

pytestmark = pytest.mark.asyncio(loop_scope="module")


def health(mesh, subset=""):
    assignment = body(mesh.compiled, "ENDPOINT", f"outbound|8500|{subset}|{VISION}")
    return {
        each["endpoint"]["address"]["socket_address"]["port_value"]: each.get("health_status")
        for group in assignment.get("endpoints", ())
        for each in group["lb_endpoints"]
    }


async def test_a_host_without_a_rule_has_istios_defaults(mesh):
    await mesh.apply(
        text(gateway(mesh.port), entry({"v1": mesh.backends["v1"].port}), everywhere())
    )
    limit = 2**32 - 1
    assert cluster(mesh) == {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": f"outbound|8500||{VISION}",
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "service_name": f"outbound|8500||{VISION}",
        },
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": limit,
                    "max_pending_requests": limit,
                    "max_requests": limit,
                    "max_retries": limit,
                    "track_remaining": True,
                }
            ]
        },
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {
                "@type": f"type.googleapis.com/{HTTP_OPTIONS}",
                "explicit_http_config": {
                    "http2_protocol_options": {"max_concurrent_streams": 1073741824}
                },
            }
        },
        "common_lb_config": {"healthy_panic_threshold": {}},
    }
    assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_subsets_select_endpoints_by_all_their_labels(mesh):
    endpoints = [
        {"address": "127.0.0.1", "ports": {"main": mesh.backends[name].port}, "labels": labels}
        for name, labels in {
            "v1": {"version": "1", "arch": "x86"},
            "v2": {"version": "2", "arch": "x86"},
            "v3": {"version": "2", "arch": "arm"},
        }.items()
    ]
    subsets = [
        {"name": "two-x86", "labels": {"version": "2", "arch": "x86"}},
        {"name": "two", "labels": {"version": "2"}},
        {"name": "none", "labels": {"version": "3"}},
        {"name": "all"},
    ]
    cases = {"two-x86": {"v2"}, "two": {"v2", "v3"}, "none": set(), "all": {"v1", "v2", "v3"}}
    routes = [
        {"match": [{"headers": {"x-to": {"exact": name}}}], "route": [to(name)]} for name in cases
    ]
    await mesh.apply(
        text(gateway(mesh.port), entry(endpoints), rule(subsets=subsets), virtual(*routes))
    )
    for subset, expected in cases.items():
        assert {mesh.backends[name].port for name in expected} == health(mesh, subset).keys()
        if expected:
            assert (await mesh.share(DOMAIN, 60, ("x-to", subset))).keys() == expected
        else:
            answer = await mesh.call(DOMAIN, ("x-to", subset))
            assert answer.code is grpc.StatusCode.UNAVAILABLE


async def test_workload_entries_are_endpoints_of_the_hosts_that_select_them(mesh):
    selected = entry([], workloadSelector={"labels": {"app": "vision"}})
    del selected["spec"]["endpoints"]
    workloads = [
        istio(
            "WorkloadEntry",
            name,
            {
                "address": "127.0.0.1",
                "ports": {"main": mesh.backends[name].port},
                "labels": {"app": app, "version": name},
            },
            namespace,
        )
        for name, app, namespace in (
            ("v1", "vision", "models"),
            ("v2", "llm", "models"),
            ("v3", "vision", "other"),
        )
    ]
    await mesh.apply(text(gateway(mesh.port), selected, *workloads, everywhere()))
    assert (await mesh.share(DOMAIN, 20)) == {"v1": 20}


async def test_only_healthy_endpoints_get_requests_however_few_are_left(mesh, vision):
    ports = {name: f"127.0.0.1:{backend.port}" for name, backend in mesh.backends.items()}
    states = {ports["v1"]: EndpointState.UNHEALTHY, ports["v2"]: EndpointState.DRAINING}
    await mesh.apply(vision(everywhere()), states)
    assert set(health(mesh).values()) == {"UNHEALTHY", "DRAINING", "HEALTHY"}
    assert await mesh.share(DOMAIN, 30) == {"v3": 30}
    await mesh.apply(vision(everywhere()), states | {ports["v3"]: EndpointState.UNHEALTHY})
    assert (await mesh.call(DOMAIN)).code is grpc.StatusCode.UNAVAILABLE


async def test_a_draining_endpoint_finishes_its_calls(mesh, vision):
    only_v1 = virtual({"route": [to("v1")], "retries": {"attempts": 0}})
    await mesh.apply(vision(only_v1))
    backend = mesh.backends["v1"]
    backend.hanging.clear()
    backend.cancelled.clear()
    running = asyncio.ensure_future(mesh.call(DOMAIN, ("x-do", "hang"), within_s=None))
    await backend.hanging.wait()
    await mesh.apply(vision(only_v1), {f"127.0.0.1:{backend.port}": EndpointState.DRAINING})
    assert (await mesh.call(DOMAIN)).code is grpc.StatusCode.UNAVAILABLE
    assert not running.done()
    assert not backend.cancelled.is_set()
    running.cancel()


async def test_unseen_endpoints_of_the_mesh_are_unhealthy_and_external_ones_are_not(mesh):
    inside = entry({"v1": 1, "v2": mesh.backends["v2"].port})
    await mesh.apply(text(gateway(mesh.port), inside, everywhere()))
    assert health(mesh) == {1: "UNHEALTHY", mesh.backends["v2"].port: "HEALTHY"}
    outside = entry({"v1": 1}, location="MESH_EXTERNAL")
    await mesh.apply(text(gateway(mesh.port), outside, everywhere()))
    assert health(mesh) == {1: "HEALTHY"}


@pytest.mark.parametrize(
    ("state", "served"),
    [
        (EndpointState.HEALTHY, "HEALTHY"),
        (EndpointState.UNHEALTHY, "HEALTHY"),
        (EndpointState.DRAINING, "DRAINING"),
    ],
)
async def test_an_external_endpoint_has_no_state_of_a_host_of_the_mesh(mesh, state, served):
    outside = entry({"v1": 1}, location="MESH_EXTERNAL")
    await mesh.apply(text(gateway(mesh.port), outside, everywhere()), {"127.0.0.1:1": state})
    assert health(mesh) == {1: served}


async def test_endpoints_have_their_labels(mesh):
    labels = {"app": "vision", "version": "v1", "zone": "a"}
    endpoint = {"address": "127.0.0.1", "ports": {"main": mesh.backends["v1"].port}, "weight": 3}
    await mesh.apply(text(gateway(mesh.port), entry([endpoint | {"labels": labels}]), everywhere()))
    (group,) = body(mesh.compiled, "ENDPOINT", f"outbound|8500||{VISION}")["endpoints"]
    assert group["load_balancing_weight"] == 3
    (made,) = group["lb_endpoints"]
    assert made["load_balancing_weight"] == 3
    assert made["metadata"]["filter_metadata"] == {
        "envoy.lb": labels,
        "istio": {"workload": "vision;models;vision;v1;Kubernetes"},
    }


async def test_a_subset_inherits_part_by_part_and_a_port_inherits_nothing(mesh):
    policy = {
        "loadBalancer": {"simple": "RANDOM"},
        "connectionPool": {"http": {"http2MaxRequests": 11}},
        "portLevelSettings": [
            {"port": {"number": 9000}, "loadBalancer": {"simple": "ROUND_ROBIN"}}
        ],
    }
    own = {"connectionPool": {"http": {"http2MaxRequests": 22}}}
    subsets = [
        {"name": "v1", "labels": {"version": "v1"}},
        {"name": "v2", "labels": {"version": "v2"}, "trafficPolicy": own},
    ]
    ports = [
        {"number": 8500, "name": "main", "protocol": "GRPC"},
        {"number": 9000, "name": "other", "protocol": "GRPC"},
    ]
    endpoints = [
        {
            "address": "127.0.0.1",
            "ports": {"main": mesh.backends[name].port, "other": mesh.backends[name].port},
            "labels": {"version": name},
        }
        for name in ("v1", "v2")
    ]
    route = to("v2")
    route["destination"]["port"] = {"number": 9000}
    await mesh.apply(
        text(
            gateway(mesh.port),
            entry(endpoints, ports=ports),
            rule(policy, subsets),
            virtual({"route": [route]}),
        )
    )

    def of(port, subset):
        made = body(mesh.compiled, "CLUSTER", f"outbound|{port}|{subset}|{VISION}")
        (limits,) = made["circuit_breakers"]["thresholds"]
        return made.get("lb_policy", "ROUND_ROBIN"), limits["max_requests"]

    limit = 2**32 - 1
    assert of(8500, "") == of(8500, "v1") == ("RANDOM", 11)
    assert of(8500, "v2") == ("RANDOM", 22)
    assert of(9000, "") == of(9000, "v1") == ("ROUND_ROBIN", limit)
    # The subset's policy inherits from the port's own, whose unset parts are Istio's defaults.
    assert of(9000, "v2") == ("ROUND_ROBIN", 22)
    assert (await mesh.call(DOMAIN)).backend == "v2"


async def test_the_rule_is_looked_up_in_three_namespaces(mesh, vision):
    def limit(requests, namespace):
        pool = {"connectionPool": {"http": {"http2MaxRequests": requests}}}
        return rule(pool, (), VISION, namespace=namespace)

    def made():
        return cluster(mesh)["circuit_breakers"]["thresholds"][0]["max_requests"]

    base = (gateway(mesh.port), entry({"v1": mesh.backends["v1"].port}), everywhere())
    root, own, proxy = limit(1, "istio-system"), limit(2, "models"), limit(3, "istio-ingress")
    private = limit(4, "models")
    private["spec"]["exportTo"] = ["."]
    for objects, expected in (
        ((root,), 1),
        ((root, limit(9, "elsewhere")), 1),
        ((root, own), 2),
        ((root, private), 1),
        ((root, own, proxy), 3),
    ):
        await mesh.apply(text(*base, *objects))
        assert made() == expected
    assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_rules_for_one_host_in_one_namespace_are_merged(mesh):
    one = rule(subsets=["v1"])
    two = rule({"loadBalancer": {"simple": "RANDOM"}}, subsets=["v2"])
    two["metadata"]["name"] = "more"
    ports = {name: mesh.backends[name].port for name in ("v1", "v2")}
    half = virtual({"route": [to("v1", 1), to("v2", 1)]})
    await mesh.apply(text(gateway(mesh.port), entry(ports), one, two, half))
    assert cluster(mesh, "v1")["lb_policy"] == cluster(mesh, "v2")["lb_policy"] == "RANDOM"
    assert (await mesh.share(DOMAIN, 40)).keys() == {"v1", "v2"}


async def test_http_ports_get_http_1_unless_the_policy_upgrades_them(mesh):
    ports = {"v1": mesh.backends["v1"].port}
    for protocol, policy, expected in (
        ("HTTP", None, None),
        ("HTTP", {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}, "http2"),
        ("HTTP", {"connectionPool": {"http": {"useClientProtocol": True}}}, "client's"),
        ("HTTP2", None, "http2"),
        ("GRPC-WEB", None, "http2"),
    ):
        await mesh.apply(
            text(
                gateway(mesh.port),
                entry(ports, protocol=protocol),
                rule(policy, ()),
                everywhere(),
            )
        )
        options = cluster(mesh).get("typed_extension_protocol_options", {}).get(HTTP_OPTIONS, {})
        assert ("http2_protocol_options" in options.get("explicit_http_config", {})) == (
            expected == "http2"
        )
        assert ("use_downstream_protocol_config" in options) == (expected == "client's")
        answer = await mesh.call(DOMAIN)
        assert (answer.backend == "v1") == (expected is not None)


async def test_hosts_by_dns_name(mesh):
    endpoint = {"address": "localhost", "ports": {"main": mesh.backends["v2"].port}}
    await mesh.apply(text(gateway(mesh.port), entry([endpoint], resolution="DNS"), everywhere()))
    made = cluster(mesh)
    assert made["type"] == "STRICT_DNS"
    assert f"outbound|8500||{VISION}" not in names(mesh.compiled, "ENDPOINT")
    assert (await mesh.call(DOMAIN)).backend == "v2"
