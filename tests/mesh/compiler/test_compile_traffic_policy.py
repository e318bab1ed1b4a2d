"""Traffic policies: how a real Envoy chooses, limits and ejects endpoints.

The translation of fields follows the comments of DestinationRule in istio/api.
"""

import asyncio
from collections import Counter

import grpc
import pytest
from mesh_objects import (
    DOMAIN,
    HTTP_OPTIONS,
    cluster,
    entry,
    everywhere,
    gateway,
    rule,
    text,
    to,
    virtual,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

HASHED = ("header", "cookie", "query", "source", "maglev")


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
async def test_consistent_hash_sends_equal_values_to_one_endpoint(mesh, vision, kind):
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


async def test_a_retry_stays_at_the_hashed_endpoint(mesh, vision):
    policy = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
    await mesh.apply(vision(virtual({"route": [to()]}), policy=policy))
    metadata = (("x-user", "7"), ("x-do", "fail UNAVAILABLE"))
    await mesh.call(DOMAIN, *metadata)
    assert sorted(len(each.calls) for each in mesh.backends.values()) == [0, 0, 3]


async def test_requests_above_a_limit_are_refused(mesh, vision):
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
    # Another name is another cluster, which has ejected no endpoint yet.
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


async def test_without_outlier_detection_no_endpoint_is_ejected(mesh, vision):
    await mesh.apply(vision(everywhere()))
    assert "outlier_detection" not in cluster(mesh)
    for _ in range(30):
        await mesh.call(DOMAIN, ("x-do", "fail UNAVAILABLE"))
    assert (await mesh.share(DOMAIN, 60)).keys() == {"v1", "v2", "v3"}
