"""Clusters and endpoints: what becomes of a DestinationRule, and how a real Envoy then chooses.

Defaults are those of istiod: LEAST_REQUEST, no limits, no outlier detection, no panic. What is set
is translated as the comments of DestinationRule in istio/api say.
"""

import asyncio
import subprocess
from collections import Counter

import grpc
import pytest
from envoy_harness import Backend
from mesh_objects import (
    DOMAIN,
    VISION,
    body,
    entry,
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

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
HASHED = ("header", "cookie", "query", "source", "maglev")


def cluster(mesh, subset=""):
    return body(mesh.compiled, "CLUSTER", f"outbound|8500|{subset}|{VISION}")


def health(mesh, subset=""):
    assignment = body(mesh.compiled, "ENDPOINT", f"outbound|8500|{subset}|{VISION}")
    return {
        each["endpoint"]["address"]["socket_address"]["port_value"]: each.get("health_status")
        for group in assignment.get("endpoints", ())
        for each in group["lb_endpoints"]
    }


def everywhere(**more):
    return virtual({"route": [to()], "retries": {"attempts": 0}, **more})


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


async def test_a_draining_endpoint_finishes_what_runs(mesh, vision):
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


async def test_labels_go_along_with_endpoints(mesh):
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


@pytest.mark.parametrize(
    ("simple", "policy"),
    [("ROUND_ROBIN", None), ("RANDOM", "RANDOM"), ("LEAST_REQUEST", "LEAST_REQUEST")],
)
async def test_simple_load_balancers(mesh, vision, simple, policy):
    await mesh.apply(vision(everywhere(), policy={"loadBalancer": {"simple": simple}}))
    assert cluster(mesh).get("lb_policy") == policy
    taken = Counter()
    for _ in range(60):
        taken[(await mesh.call(DOMAIN)).backend] += 1
    assert taken.keys() == {"v1", "v2", "v3"}
    if simple == "ROUND_ROBIN":
        assert set(taken.values()) == {20}


async def test_full_scan_takes_the_endpoint_with_the_fewest_requests(mesh, vision):
    await mesh.apply(vision(everywhere(), annotations={"load-balancer": "full-scan"}))
    (policy,) = cluster(mesh)["load_balancing_policy"]["policies"]
    assert policy["typed_extension_config"]["typed_config"]["selection_method"] == "FULL_SCAN"
    assert "lb_policy" not in cluster(mesh)
    busy = {}
    for name in mesh.backends:
        mesh.backends[name].hanging.clear()
    for _ in range(2):
        call = asyncio.ensure_future(mesh.call(DOMAIN, ("x-do", "hang"), within_s=None))
        waits = {
            name: asyncio.ensure_future(backend.hanging.wait())
            for name, backend in mesh.backends.items()
            if name not in busy
        }
        await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
        (name,) = (name for name, wait in waits.items() if wait.done())
        for wait in waits.values():
            wait.cancel()
        busy[name] = call
    (idle,) = mesh.backends.keys() - busy.keys()
    answers = [(await mesh.call(DOMAIN)).backend for _ in range(30)]
    for call in busy.values():
        call.cancel()
    assert set(answers) == {idle}


async def test_orca_weighs_by_reported_load(mesh, vision):
    await mesh.apply(vision(everywhere(), annotations={"load-balancer": "orca"}))
    (policy,) = cluster(mesh)["load_balancing_policy"]["policies"]
    assert policy["typed_extension_config"]["name"] == (
        "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3."
        "ClientSideWeightedRoundRobin"
    )
    assert (await mesh.share(DOMAIN, 60)).keys() == {"v1", "v2", "v3"}


async def test_warmup(mesh, vision):
    warmup = {"duration": "30s", "minimumPercent": 5, "aggression": 2}
    slow = {"loadBalancer": {"simple": "ROUND_ROBIN", "warmup": warmup}}
    await mesh.apply(vision(everywhere(), policy=slow))
    config = cluster(mesh)["round_robin_lb_config"]["slow_start_config"]
    assert config["slow_start_window"] == "30s"
    assert config["aggression"]["default_value"] == 2
    assert config["min_weight_percent"] == {"value": 5}
    await mesh.apply(vision(everywhere(), policy={"loadBalancer": {"warmupDurationSecs": "7s"}}))
    config = cluster(mesh)["least_request_lb_config"]["slow_start_config"]
    assert config["slow_start_window"] == "7s"
    assert config["aggression"]["default_value"] == 1
    assert config["min_weight_percent"] == {"value": 10}
    assert (await mesh.call(DOMAIN)).code is grpc.StatusCode.OK


@pytest.mark.parametrize("kind", HASHED)
async def test_consistent_hash_sends_what_is_alike_to_one_endpoint(mesh, vision, kind):
    hashing = {
        "header": {"httpHeaderName": "x-user"},
        "cookie": {"httpCookie": {"name": "user", "path": "/p", "ttl": "60s"}},
        "query": {"httpQueryParameterName": "user"},
        "source": {"useSourceIp": True, "ringHash": {"minimumRingSize": 2048}},
        "maglev": {"httpHeaderName": "x-user", "maglev": {"tableSize": 251}},
    }[kind]
    await mesh.apply(vision(everywhere(), policy={"loadBalancer": {"consistentHash": hashing}}))
    made = cluster(mesh)
    assert made["lb_policy"] == ("MAGLEV" if kind == "maglev" else "RING_HASH")
    if kind == "maglev":
        assert made["maglev_lb_config"] == {"table_size": "251"}
    else:
        size = "2048" if kind == "source" else "1024"
        assert made["ring_hash_lb_config"] == {"minimum_ring_size": size}
    seen = set()
    for user in range(12):
        metadata, method = (), "/a.B/C"
        if kind in ("header", "maglev"):
            metadata = (("x-user", f"u{user}"),)
        elif kind == "cookie":
            metadata = (("cookie", f"user=u{user}"),)
        elif kind == "query":
            method = f"/a.B/C?user=u{user}"
        answers = {(await mesh.call(DOMAIN, *metadata, method=method)).backend for _ in range(4)}
        assert len(answers) == 1
        seen |= answers
    assert len(seen) == 1 if kind == "source" else len(seen) > 1
    if kind == "cookie":
        issued = (await mesh.call(DOMAIN)).metadata["set-cookie"]
        assert issued.startswith('user="')
        assert "Max-Age=60" in issued
        assert "Path=/p" in issued


async def test_a_hash_is_not_left_by_a_retry(mesh, vision):
    policy = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
    await mesh.apply(vision(virtual({"route": [to()]}), policy=policy))
    metadata = (("x-user", "7"), ("x-do", "fail UNAVAILABLE"))
    await mesh.call(DOMAIN, *metadata)
    assert sorted(len(each.calls) for each in mesh.backends.values()) == [0, 0, 3]


async def test_a_limit_of_requests_refuses_those_above_it(mesh, vision):
    pool = {
        "tcp": {
            "maxConnections": 3,
            "connectTimeout": "2s",
            "maxConnectionDuration": "3600s",
            "tcpKeepalive": {"probes": 3, "time": "60s", "interval": "10s"},
        },
        "http": {
            "http2MaxRequests": 1,
            "http1MaxPendingRequests": 5,
            "maxRetries": 6,
            "maxRequestsPerConnection": 7000,
            "idleTimeout": "90s",
            "maxConcurrentStreams": 100,
            "http2KeepAlive": {"interval": "30s", "timeout": "5s"},
        },
    }
    only_v1 = virtual({"route": [to("v1")], "retries": {"attempts": 0}})
    await mesh.apply(vision(only_v1, policy={"connectionPool": pool}))
    made = cluster(mesh, "v1")
    assert made["connect_timeout"] == "2s"
    assert made["circuit_breakers"]["thresholds"] == [
        {
            "max_connections": 3,
            "max_pending_requests": 5,
            "max_requests": 1,
            "max_retries": 6,
            "track_remaining": True,
        }
    ]
    assert made["upstream_connection_options"]["tcp_keepalive"] == {
        "keepalive_probes": 3,
        "keepalive_time": 60,
        "keepalive_interval": 10,
    }
    options = made["typed_extension_protocol_options"][HTTP_OPTIONS]
    assert options["common_http_protocol_options"] == {
        "idle_timeout": "90s",
        "max_requests_per_connection": 7000,
        "max_connection_duration": "3600s",
    }
    assert options["explicit_http_config"]["http2_protocol_options"] == {
        "max_concurrent_streams": 100,
        "connection_keepalive": {"interval": "30s", "timeout": "5s"},
    }
    backend = mesh.backends["v1"]
    backend.hanging.clear()
    running = asyncio.ensure_future(mesh.call(DOMAIN, ("x-do", "hang"), within_s=None))
    await backend.hanging.wait()
    refused = await mesh.call(DOMAIN)
    running.cancel()
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert refused.metadata["x-envoy-overloaded"] == "true"


async def test_a_retry_budget(mesh, vision):
    policy = {"retryBudget": {"percent": 25, "minRetryConcurrency": 9}}
    await mesh.apply(vision(everywhere(), policy=policy))
    (limits,) = cluster(mesh)["circuit_breakers"]["thresholds"]
    assert limits["retry_budget"] == {"budget_percent": {"value": 25}, "min_retry_concurrency": 9}
    assert (await mesh.call(DOMAIN)).code is grpc.StatusCode.OK


async def test_outlier_detection_ejects_an_endpoint_that_fails(mesh, vision):
    outliers = {
        "consecutive5xxErrors": 2,
        "interval": "600s",
        "baseEjectionTime": "600s",
        "maxEjectionPercent": 50,
        "minHealthPercent": 10,
    }
    await mesh.apply(vision(everywhere(), policy={"outlierDetection": outliers}))
    made = cluster(mesh)
    assert made["outlier_detection"] == {
        "consecutive_5xx": 2,
        "enforcing_consecutive_5xx": 100,
        "enforcing_success_rate": 0,
        "interval": "600s",
        "base_ejection_time": "600s",
        "max_ejection_percent": 50,
    }
    assert made["common_lb_config"]["healthy_panic_threshold"] == {"value": 10}
    failed = Counter()
    while max(failed.values(), default=0) < 2:
        before = {name: len(each.calls) for name, each in mesh.backends.items()}
        await mesh.call(DOMAIN, ("x-do", "fail UNAVAILABLE"))
        (name,) = (n for n, each in mesh.backends.items() if len(each.calls) > before[n])
        failed[name] += 1
    ((ejected, _),) = failed.most_common(1)
    assert ejected not in await mesh.share(DOMAIN, 60)


@pytest.mark.parametrize("always", [False, True])
async def test_always_eject_one_host_where_the_percentage_comes_to_none(mesh, vision, always):
    outliers = {"consecutive5xxErrors": 1, "interval": "600s", "baseEjectionTime": "600s"}
    annotations = {"always-eject-one-host": "true"} if always else None
    # Another name is another cluster, which has not ejected anybody yet.
    host = f"fresh-{str(always).lower()}"
    ports = {name: backend.port for name, backend in mesh.backends.items()}
    objects = text(
        gateway(mesh.port),
        entry(ports, host=f"{host}.models.svc.cluster.local"),
        rule({"outlierDetection": outliers}, (), host, annotations),
        virtual({"route": [to(host=host)], "retries": {"attempts": 0}}),
    )
    await mesh.apply(objects)
    await mesh.call(DOMAIN, ("x-do", "fail UNAVAILABLE"))
    (failed,) = (name for name, backend in mesh.backends.items() if backend.calls)
    taken = await mesh.share(DOMAIN, 60)
    assert (failed not in taken) == always


async def test_without_outlier_detection_nobody_is_ejected(mesh, vision):
    await mesh.apply(vision(everywhere()))
    assert "outlier_detection" not in cluster(mesh)
    for _ in range(30):
        await mesh.call(DOMAIN, ("x-do", "fail UNAVAILABLE"))
    assert (await mesh.share(DOMAIN, 60)).keys() == {"v1", "v2", "v3"}


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
    # The subset's own policy lies over the port's, whose unset parts are Istio's defaults.
    assert of(9000, "v2") == ("ROUND_ROBIN", 22)
    assert (await mesh.call(DOMAIN)).backend == "v2"


async def test_the_rule_is_looked_for_in_three_places(mesh, vision):
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


async def test_rules_for_one_host_in_one_namespace_are_taken_together(mesh):
    one = rule(subsets=["v1"])
    two = rule({"loadBalancer": {"simple": "RANDOM"}}, subsets=["v2"])
    two["metadata"]["name"] = "more"
    ports = {name: mesh.backends[name].port for name in ("v1", "v2")}
    half = virtual({"route": [to("v1", 1), to("v2", 1)]})
    await mesh.apply(text(gateway(mesh.port), entry(ports), one, two, half))
    assert cluster(mesh, "v1")["lb_policy"] == cluster(mesh, "v2")["lb_policy"] == "RANDOM"
    assert (await mesh.share(DOMAIN, 40)).keys() == {"v1", "v2"}


async def test_http_ports_are_spoken_to_by_http_1_and_upgraded_when_told(mesh):
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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate for vision.example.com that is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-days", "2", "-subj", "/CN=vision", "-keyout", folder / "key.pem"),
            *("-addext", f"subjectAltName=DNS:{DOMAIN}", "-out", folder / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("authority", [DOMAIN, "other.example.com"])
async def test_tls_to_the_endpoints(mesh, certificates, authority):
    cert, key = (certificates / each for each in ("cert.pem", "key.pem"))
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), require_client_auth=True
    )
    secured = Backend("secured", credentials)
    await secured.server.start()
    tls = {
        "mode": "MUTUAL",
        "clientCertificate": str(cert),
        "privateKey": str(key),
        "caCertificates": str(cert),
        "subjectAltNames": [authority],
        "sni": DOMAIN,
    }
    host = f"for-{authority.split('.')[0]}"
    await mesh.apply(
        text(
            gateway(mesh.port),
            entry({"v1": secured.port}, host=f"{host}.models.svc.cluster.local"),
            rule({"tls": tls}, (), host),
            virtual({"route": [to(host=host)]}),
        ),
        {f"127.0.0.1:{secured.port}": EndpointState.HEALTHY},
    )
    answer = await mesh.call(DOMAIN)
    await secured.server.stop(None)
    if authority == DOMAIN:
        assert answer.backend == "secured"
    else:
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert secured.calls == []


async def test_the_client_names_the_server_it_wants_unless_told_another(mesh, vision):
    tls = {"mode": "SIMPLE", "caCertificates": "/etc/ssl/certs/ca-certificates.crt"}
    compiled = mesh.compile(vision(everywhere(), policy={"tls": tls}))
    made = body(compiled, "CLUSTER", f"outbound|8500||{VISION}")
    options = made["typed_extension_protocol_options"][HTTP_OPTIONS]
    assert options["upstream_http_protocol_options"] == {
        "auto_sni": True,
        "auto_san_validation": True,
    }
    context = made["transport_socket"]["typed_config"]["common_tls_context"]
    assert context["alpn_protocols"] == ["h2"]
    assert context["tls_params"] == {
        "tls_minimum_protocol_version": "TLSv1_2",
        "tls_maximum_protocol_version": "TLSv1_3",
    }
