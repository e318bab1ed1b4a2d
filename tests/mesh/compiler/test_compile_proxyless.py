"""gRPC clients that dial ``xds:///HOST:PORT``, tested with grpcio's own xDS client.

Expectations follow gRPC's feature table (grpc/doc/grpc_xds_features.md) and the gRFCs A27 (load
balancing), A28 (routes), A31 (timeouts), A33 (faults), A42 (ring hash), A44 (retries), A52 and A58
(weighted round robin): a client refuses a cluster whose load balancer it does not know, and a
filter that it does not know.
"""

import pytest
from mesh_objects import VISION, body, entry, gateway, names, rule, text, to, virtual

from tidegate.mesh.compiler import EndpointState
from tidegate.mesh.resources import ProxyKind, ResourceType

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRPC = ProxyKind.GRPC
TARGET = f"{VISION}:8500"


def inside(*http, **more):
    return virtual(*http, hosts=["vision"], gateways=["mesh"], **more)


def rejections(mesh):
    return [each for proxy in mesh.distribution.proxies() for each in proxy.rejections]


async def test_a_host_without_an_object_is_found_by_its_name(mesh, vision, client):
    await mesh.apply(vision())
    name = f"outbound|8500||{VISION}"
    assert TARGET in names(mesh.compiled, "LISTENER", GRPC)
    listener = body(mesh.compiled, "LISTENER", TARGET, GRPC)
    manager = listener["api_listener"]["api_listener"]
    assert manager["rds"]["route_config_name"] == name
    assert [each["name"] for each in manager["http_filters"]] == [
        "envoy.filters.http.fault",
        "envoy.filters.http.router",
    ]
    (host,) = body(mesh.compiled, "ROUTE", name, GRPC)["virtual_hosts"]
    assert host["domains"] == [VISION, TARGET]
    assert host["routes"][0]["route"]["cluster"] == name
    cluster = body(mesh.compiled, "CLUSTER", name, GRPC)
    assert cluster["lrs_server"] == {"self": {}}
    assert "lb_policy" not in cluster
    assert (await client.calls(TARGET, 30)).keys() == {"v1", "v2", "v3"}
    assert rejections(mesh) == []


async def test_only_objects_for_the_mesh_hold(mesh, vision, client):
    at_gateway = virtual({"route": [to("v1")]}, hosts=["vision"], name="outside")
    beta = {"match": [{"headers": {"x-tier": {"exact": "beta"}}}], "route": [to("v2")]}
    await mesh.apply(vision(at_gateway, inside(beta, {"route": [to("v3")]}, name="inside")))
    assert await client.calls(TARGET, 10) == {"v3": 10}
    assert await client.calls(TARGET, 10, ("x-tier", "beta")) == {"v2": 10}


async def test_weights_divide_and_change_while_the_client_calls(mesh, vision, client):
    def split(weight):
        return vision(inside({"route": [to("v2", weight), to("v1", 100 - weight)]}))

    await mesh.apply(split(25))
    taken = await client.calls(TARGET, 400)
    assert abs(taken["v2"] - 100) < 6 * (400 * 0.25 * 0.75) ** 0.5
    await mesh.apply(split(0))
    keys = [key for key in mesh.compiled.resources[GRPC] if key.type is ResourceType.ROUTE]
    assert (await mesh.distribution.acknowledged({GRPC: keys}, 20)).done
    assert await client.calls(TARGET, 50) == {"v1": 50}


async def test_load_balancers_that_grpc_does_not_know_are_round_robin(mesh, vision, client):
    for policy in (
        {"loadBalancer": {"simple": "LEAST_REQUEST"}},
        {"loadBalancer": {"simple": "RANDOM"}},
        {"loadBalancer": {"consistentHash": {"httpHeaderName": "u", "maglev": {"tableSize": 251}}}},
        {"outlierDetection": {"consecutive5xxErrors": 1}},
        {"connectionPool": {"http": {"http2MaxRequests": 500, "idleTimeout": "9s"}}},
    ):
        await mesh.apply(vision(policy=policy))
        assert (await client.calls(TARGET, 30)).keys() == {"v1", "v2", "v3"}
    cluster = body(mesh.compiled, "CLUSTER", f"outbound|8500||{VISION}", GRPC)
    assert cluster["circuit_breakers"] == {"thresholds": [{"max_requests": 500}]}
    assert rejections(mesh) == []


async def test_a_ring_of_hashes_keeps_users(mesh, vision, client):
    policy = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
    await mesh.apply(vision(inside({"route": [to()]}), policy=policy))
    seen = [await client.calls(TARGET, 5, ("x-user", f"u{user}")) for user in range(8)]
    assert all(len(each) == 1 for each in seen)
    assert len({name for each in seen for name in each}) > 1


async def test_clients_accept_orca(mesh, vision, client):
    await mesh.apply(vision(annotations={"load-balancer": "orca"}))
    assert (await client.calls(TARGET, 30)).keys() == {"v1", "v2", "v3"}
    assert rejections(mesh) == []


async def test_faults_and_timeouts_and_retries(mesh, vision, client):
    abort = {"abort": {"grpcStatus": "ABORTED", "percentage": {"value": 100}}}
    routes = [
        {"match": [{"headers": {"x-fault": {}}}], "route": [to("v1")], "fault": abort},
        {"match": [{"headers": {"x-slow": {}}}], "route": [to("v1")], "timeout": "0.2s"},
        {"route": [to("v2")], "retries": {"attempts": 3, "retryOn": "unavailable"}},
    ]
    await mesh.apply(vision(inside(*routes)))
    assert await client.calls(TARGET, 5, ("x-fault", "1")) == {"ABORTED": 5}
    slow = (("x-slow", "1"), ("x-do", "hang"))
    assert await client.calls(TARGET, 2, *slow) == {"DEADLINE_EXCEEDED": 2}
    assert await client.calls(TARGET, 2, ("x-do", "fail UNAVAILABLE")) == {"UNAVAILABLE": 2}
    # Four attempts of each call: the first and three retries.
    assert len(mesh.backends["v2"].calls) == 8


async def test_parts_that_grpc_does_not_support_are_left_out_and_the_rest_holds(
    mesh, vision, client
):
    rich = {
        "route": [to("v1", headers={"request": {"set": {"x-a": "b"}}})],
        "corsPolicy": {"allowOrigins": [{"exact": "https://a.test"}]},
        "mirrors": [{"destination": to("v2")["destination"]}],
        "rewrite": {"authority": "c.test"},
        "headers": {"response": {"set": {"x-d": "e"}}},
    }
    redirect = {"match": [{"uri": {"prefix": "/gone"}}], "redirect": {"uri": "/here"}}
    sticky = {"sticky": "header:x-user-id"}
    await mesh.apply(vision(inside(redirect, rich, annotations=sticky)))
    _, made = body(mesh.compiled, "ROUTE", f"outbound|8500||{VISION}", GRPC)["virtual_hosts"][0][
        "routes"
    ]
    assert made.keys() == {"match", "route"}
    assert made["route"].keys() == {"cluster", "retry_policy", "max_stream_duration"}
    assert await client.calls(TARGET, 10) == {"v1": 10}
    assert mesh.backends["v2"].calls == []
    assert rejections(mesh) == []


async def test_conditions_that_grpc_cannot_see_never_match(mesh, vision, client):
    """The docs say so: a client passes these routes over, and no update is rejected."""
    conditions = [
        {"queryParams": {"x-tier": {"exact": "beta"}}},
        {"scheme": {"exact": "http"}},
        {"method": {"exact": "POST"}},
        {"authority": {"exact": TARGET}},
        {"headers": {"te": {"exact": "trailers"}}},
        {"headers": {"user-agent": {"prefix": "grpc"}}},
    ]
    seen = {"match": [{"headers": {"content-type": {"exact": "application/grpc"}}}]}
    await mesh.apply(
        vision(
            inside({"match": conditions, "route": [to("v1")]}, {**seen, "route": [to("v2")]}),
        )
    )
    assert await client.calls(TARGET, 5, ("x-tier", "beta")) == {"v2": 5}
    assert rejections(mesh) == []


async def test_routes_without_a_server_fail_calls(mesh, vision, client):
    for answer in ({"redirect": {"uri": "/elsewhere"}}, {"directResponse": {"status": 503}}):
        asked = {"match": [{"headers": {"x-a": {}}}], **answer}
        await mesh.apply(vision(inside(asked, {"route": [to("v1")]})))
        assert await client.calls(TARGET, 2, ("x-a", "b")) == {"UNAVAILABLE": 2}
        assert await client.calls(TARGET, 2) == {"v1": 2}


async def test_health_decides_for_clients_too(mesh, vision, client):
    states = {
        f"127.0.0.1:{mesh.backends['v1'].port}": EndpointState.UNHEALTHY,
        f"127.0.0.1:{mesh.backends['v2'].port}": EndpointState.DRAINING,
    }
    await mesh.apply(vision(), states)
    assert await client.calls(TARGET, 20) == {"v3": 20}


async def test_the_most_specific_object_holds_for_a_host(mesh, vision, client):
    wide = virtual(
        {"route": [to("v1")]}, hosts=["*.svc.cluster.local"], gateways=["mesh"], name="wide"
    )
    wider = virtual({"route": [to("v2")]}, hosts=["*.local"], gateways=["mesh"], name="wider")
    await mesh.apply(vision(wide, wider))
    assert await client.calls(TARGET, 10) == {"v1": 10}


async def test_hosts_by_one_dns_name_are_served_and_by_several_are_not(mesh, client):
    one = {"address": "localhost", "ports": {"main": mesh.backends["v3"].port}}
    await mesh.apply(text(gateway(mesh.port), entry([one], resolution="DNS"), rule(subsets=())))
    assert body(mesh.compiled, "CLUSTER", f"outbound|8500||{VISION}", GRPC)["type"] == "LOGICAL_DNS"
    assert await client.calls(TARGET, 5) == {"v3": 5}
    several = [one, one | {"address": "other.test"}]
    await mesh.apply(text(gateway(mesh.port), entry(several, resolution="DNS")))
    assert names(mesh.compiled, "CLUSTER", GRPC) == set()


async def test_ports_without_http_2_are_not_offered(mesh):
    compiled = mesh.compile(text(gateway(mesh.port), entry({"v1": 1}, protocol="HTTP")))
    assert names(compiled, "LISTENER", GRPC) == set()
