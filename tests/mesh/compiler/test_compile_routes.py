"""Routes: how a VirtualService is compiled, and what a real Envoy does with the result.

Where a test compares resources, the expectation is istiod's documented translation (the comments of
VirtualService in istio/api, and Istio's page "Traffic Management"). Where it observes traffic, the
expectation is from Envoy's documentation of the field.
"""

import asyncio
import json

import aiohttp
import grpc
import pytest
from mesh_objects import DOMAIN, VISION, body, entry, gateway, rule, text, to, virtual

from tidegate.mesh.resources import ROUTE_BY_HEADERS, ROUTE_METADATA

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHOD = "/tidegate.test.v1.Echo/Say"


def routes(mesh, domain=DOMAIN):
    return body(mesh.compiled, "VIRTUAL_HOST", f"http.{mesh.port}/{domain}")["routes"]


def cluster(subset=""):
    return f"outbound|8500|{subset}|{VISION}"


async def test_the_first_rule_that_matches_takes_the_request(mesh, vision):
    beta = {"match": [{"headers": {"x-tier": {"exact": "beta"}}}], "route": [to("v2")]}
    also_beta = {"match": [{"headers": {"x-tier": {"prefix": "be"}}}], "route": [to("v3")]}
    await mesh.apply(vision(virtual(beta, also_beta, {"route": [to("v1")]})))
    first, second, last = routes(mesh)
    assert first["match"]["headers"] == [{"name": "x-tier", "string_match": {"exact": "beta"}}]
    assert second["match"]["headers"] == [{"name": "x-tier", "string_match": {"prefix": "be"}}]
    assert last["match"] == {"prefix": "/"}
    assert [each["route"]["cluster"] for each in (first, second, last)] == [
        cluster("v2"),
        cluster("v3"),
        cluster("v1"),
    ]
    assert (await mesh.call(DOMAIN, ("x-tier", "beta"))).backend == "v2"
    assert (await mesh.call(DOMAIN, ("x-tier", "best"))).backend == "v3"
    assert (await mesh.call(DOMAIN, ("x-tier", "gold"))).backend == "v1"
    assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_routes_with_conditions_on_headers_are_marked_for_the_access_log(mesh, vision):
    beta = {"match": [{"headers": {"x-tier": {"exact": "beta"}}}], "route": [to("v2")]}
    some = {"match": [*beta["match"], {"uri": {"exact": METHOD}}], "route": [to("v3")]}
    path = {"match": [{"uri": {"prefix": "/tidegate"}}], "route": [to("v2")]}
    await mesh.apply(vision(virtual(beta, some, path, {"route": [to("v1")]})))
    marks = [
        each.get("metadata", {}).get("filter_metadata", {}).get(ROUTE_METADATA, {})
        for each in routes(mesh)
    ]
    mark = {ROUTE_BY_HEADERS: "1"}
    assert marks == [mark, mark, mark, {}, {}]


async def test_rules_after_a_catch_all_are_left_out(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v1")]}, {"route": [to("v2")]})))
    assert [each["route"]["cluster"] for each in routes(mesh)] == [cluster("v1")]


async def test_a_rule_without_a_match_that_fits_answers_unimplemented(mesh, vision):
    only = {"match": [{"uri": {"exact": METHOD}}], "route": [to("v1")]}
    await mesh.apply(vision(virtual(only)))
    assert (await mesh.call(DOMAIN)).backend == "v1"
    other = await mesh.call(DOMAIN, method="/tidegate.test.v1.Echo/Other")
    assert other.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("match", "hits", "misses"),
    [
        ({"uri": {"exact": "/a.B/C"}}, {"method": "/a.B/C"}, {"method": "/a.B/CD"}),
        ({"uri": {"prefix": "/a.B/"}}, {"method": "/a.B/CD"}, {"method": "/a.C/D"}),
        ({"uri": {"regex": "/a.[BC]/.*"}}, {"method": "/a.C/D"}, {"method": "/x/a.C/D"}),
        (
            {"uri": {"exact": "/a.b/c"}, "ignoreUriCase": True},
            {"method": "/A.B/C"},
            {"method": "/A.B/D"},
        ),
        ({"method": {"exact": "POST"}}, {}, None),
        ({"scheme": {"exact": "http"}}, {}, None),
        ({"authority": {"prefix": "vision."}}, {}, None),
        ({"authority": {"exact": "other.example.com"}}, None, {}),
        ({"headers": {"x-a": {}}}, {"x-a": "anything"}, {}),
        ({"headers": {"x-a": {"regex": "b+"}}}, {"x-a": "bbb"}, {"x-a": "bbc"}),
        ({"withoutHeaders": {"x-a": {}}}, {}, {"x-a": "b"}),
        ({"withoutHeaders": {"x-a": {"exact": "b"}}}, {}, {"x-a": "b"}),
        ({"withoutHeaders": {"x-a": {"exact": "b"}}}, {"x-a": "c"}, None),
        ({"queryParams": {"q": {"exact": "1"}}}, {"method": "/a/b?q=1"}, {"method": "/a/b?q=2"}),
        ({"queryParams": {"q": {}}}, {"method": "/a/b?q=7"}, {"method": "/a/b?r=1"}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
async def test_conditions(mesh, vision, match, hits, misses):
    await mesh.apply(
        vision(virtual({"match": [match], "route": [to("v2")]}, {"route": [to("v1")]}))
    )
    for request, backend in ((hits, "v2"), (misses, "v1")):
        if request is not None:
            method = request.get("method", METHOD)
            metadata = [(key, value) for key, value in request.items() if key != "method"]
            assert (await mesh.call(DOMAIN, *metadata, method=method)).backend == backend


async def test_conditions_of_one_match_all_hold_and_any_match_suffices(mesh, vision):
    both = {"uri": {"prefix": "/tidegate."}, "headers": {"x-a": {"exact": "1"}}}
    other = {"headers": {"x-b": {"exact": "1"}}}
    await mesh.apply(
        vision(virtual({"match": [both, other], "route": [to("v2")]}, {"route": [to("v1")]}))
    )
    assert (await mesh.call(DOMAIN, ("x-a", "1"))).backend == "v2"
    assert (await mesh.call(DOMAIN, ("x-a", "1"), method="/other/x")).backend == "v1"
    assert (await mesh.call(DOMAIN, ("x-b", "1"), method="/other/x")).backend == "v2"


async def test_a_match_holds_only_at_its_port_and_its_gateways(mesh, vision):
    here = {"match": [{"port": mesh.port}], "route": [to("v1")]}
    there = {"match": [{"port": mesh.ports[1]}], "route": [to("v2")]}
    in_mesh = {"match": [{"gateways": ["mesh"]}], "route": [to("v3")]}
    services = virtual(in_mesh, there, here, gateways=("in", "in2", "mesh"))
    await mesh.apply(vision(gateway(mesh.ports[1], name="in2"), services))
    assert [each["route"]["cluster"] for each in routes(mesh)] == [cluster("v1")]
    assert (await mesh.call(DOMAIN)).backend == "v1"
    assert (await mesh.call(DOMAIN, port=mesh.ports[1])).backend == "v2"


async def test_weights_are_relative_and_zero_gets_nothing(mesh, vision):
    route = [to("v3", 0), to("v2", 1), to("v1", 3)]
    await mesh.apply(vision(virtual({"route": route})))
    (made,) = routes(mesh)
    assert made["route"]["weighted_clusters"]["clusters"] == [
        {"name": cluster("v2"), "weight": 1},
        {"name": cluster("v1"), "weight": 3},
    ]
    taken = await mesh.share(DOMAIN, 1000)
    # Six standard deviations of a binomial with p = 1/4.
    assert taken.keys() == {"v1", "v2"}
    assert abs(taken["v2"] - 250) < 6 * (1000 * 0.25 * 0.75) ** 0.5


async def test_without_a_timeout_the_clients_deadline_holds_and_nothing_else(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v1")]})))
    (made,) = routes(mesh)
    assert made["route"]["timeout"] == "0s"
    assert made["route"]["max_stream_duration"] == {"max_stream_duration": "0s"}
    # gRPC rounds the sent deadline up by 1 % at most.
    assert 19 < (await mesh.call(DOMAIN, within_s=20)).remaining_s <= 20.2
    backend = mesh.backends["v1"]
    backend.cancelled.clear()
    answer = await mesh.call(DOMAIN, ("x-do", "hang"), within_s=0.3)
    assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(20):
        await backend.cancelled.wait()


async def test_a_timeout_ends_a_call_before_the_clients_deadline(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v1")], "timeout": "0.2s"})))
    (made,) = routes(mesh)
    assert made["route"]["timeout"] == "0.200s"
    assert made["route"]["max_stream_duration"] == {"max_stream_duration": "0.200s"}
    answer = await mesh.call(DOMAIN, ("x-do", "hang"), within_s=20)
    assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert answer.details == "downstream duration timeout"
    # Without a client deadline, the server gets the timeout, and may end the call first.
    answer = await mesh.call(DOMAIN, ("x-do", "hang"), within_s=None)
    assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert answer.details in {"downstream duration timeout", "Deadline Exceeded"}


async def test_istios_retries_are_on_and_go_to_other_endpoints(mesh, vision):
    await mesh.apply(
        vision(virtual({"route": [to()]}), policy={"loadBalancer": {"simple": "ROUND_ROBIN"}})
    )
    (made,) = routes(mesh)
    policy = made["route"]["retry_policy"]
    assert policy["num_retries"] == 2
    assert policy["retry_on"] == (
        "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
    )
    assert policy["host_selection_retry_max_attempts"] == "5"
    (predicate,) = policy["retry_host_predicate"]
    assert predicate["name"] == "envoy.retry_host_predicates.previous_hosts"
    answer = await mesh.call(DOMAIN, ("x-do", "fail UNAVAILABLE"))
    assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert sorted(len(each.calls) for each in mesh.backends.values()) == [1, 1, 1]
    other = await mesh.call(DOMAIN, ("x-do", "fail INTERNAL"))
    assert other.code is grpc.StatusCode.INTERNAL
    assert sum(len(each.calls) for each in mesh.backends.values()) == 4


async def test_attempts_0_turns_retries_off(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v1")], "retries": {"attempts": 0}})))
    (made,) = routes(mesh)
    assert "retry_policy" not in made["route"]
    await mesh.call(DOMAIN, ("x-do", "fail UNAVAILABLE"))
    assert len(mesh.backends["v1"].calls) == 1


async def test_retries_of_a_route(mesh, vision):
    retries = {
        "attempts": 4,
        "retryOn": "resource-exhausted,503",
        "perTryTimeout": "5s",
        "backoff": "0.001s",
        "retryIgnorePreviousHosts": False,
    }
    await mesh.apply(vision(virtual({"route": [to("v1")], "retries": retries})))
    (made,) = routes(mesh)
    assert made["route"]["retry_policy"] == {
        "retry_on": "resource-exhausted,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": 4,
        "per_try_timeout": "5s",
        "retry_back_off": {"base_interval": "0.001s"},
        "host_selection_retry_max_attempts": "5",
    }
    await mesh.call(DOMAIN, ("x-do", "fail RESOURCE_EXHAUSTED"))
    assert len(mesh.backends["v1"].calls) == 5
    await mesh.call(DOMAIN, ("x-do", "fail UNAVAILABLE"))
    assert len(mesh.backends["v1"].calls) == 6


async def test_mirrors_get_copies(mesh, vision):
    copied = {"route": [to("v1")], "mirrors": [{"destination": to("v2")["destination"]}]}
    seldom = {"destination": to("v3")["destination"], "percentage": {"value": 0}}
    copied["mirrors"].append(seldom)
    await mesh.apply(vision(virtual(copied)))
    (made,) = routes(mesh)
    assert made["route"]["request_mirror_policies"] == [
        {
            "cluster": cluster("v2"),
            "runtime_fraction": {
                "default_value": {"numerator": 1_000_000, "denominator": "MILLION"}
            },
            "trace_sampled": False,
            "disable_shadow_host_suffix_append": True,
            # The access log tells copies by it.
            "request_headers_mutations": [
                {
                    "append": {
                        "header": {"key": "x-tidegate-mirrored", "value": "1"},
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    }
                }
            ],
        }
    ]
    assert await mesh.share(DOMAIN, 20) == {"v1": 20}
    await mesh.backends["v2"].got(20)
    assert mesh.backends["v3"].calls == []


async def test_a_mirror_gets_its_percentage(mesh, vision):
    mirrored = {
        "route": [to("v1")],
        "mirror": to("v2")["destination"],
        "mirrorPercentage": {"value": 12.5},
    }
    await mesh.apply(vision(virtual(mirrored)))
    (made,) = routes(mesh)
    (policy,) = made["route"]["request_mirror_policies"]
    assert policy["runtime_fraction"]["default_value"]["numerator"] == 125_000
    await mesh.share(DOMAIN, 800)
    copies = len(mesh.backends["v2"].calls)
    assert abs(copies - 100) < 6 * (800 * 0.125 * 0.875) ** 0.5


async def test_headers_are_set_added_and_removed(mesh, vision):
    changes = {
        "request": {"set": {"x-a": "set"}, "add": {"x-b": "added"}, "remove": ["x-c"]},
        "response": {"set": {"x-d": "set"}, "add": {"x-e": "added"}, "remove": ["x-from"]},
    }
    own = {"request": {"set": {"x-version": "v1"}}}
    await mesh.apply(vision(virtual({"route": [to("v1", headers=own)], "headers": changes})))
    answer = await mesh.call(DOMAIN, ("x-a", "client"), ("x-b", "client"), ("x-c", "client"))
    assert answer.headers["x-a"] == "set"
    assert answer.headers["x-b"] == "added"
    assert "x-c" not in answer.headers
    assert answer.headers["x-version"] == "v1"
    assert answer.metadata["x-d"] == "set"
    assert answer.metadata["x-e"] == "added"
    assert "x-from" not in answer.metadata


async def test_headers_of_a_weighted_destination_are_its_own(mesh, vision):
    route = [
        to("v2", 50, headers={"request": {"set": {"x-is": "canary"}}}),
        to("v1", 50, headers={"response": {"set": {"x-was": "baseline"}}}),
    ]
    await mesh.apply(vision(virtual({"route": route})))
    for answer in await asyncio.gather(*(mesh.call(DOMAIN) for _ in range(50))):
        assert ("x-is" in answer.headers) == (answer.backend == "v2")
        assert ("x-was" in answer.metadata) == (answer.backend == "v1")


async def test_aborts_with_a_grpc_status(mesh, vision):
    abort = {"abort": {"grpcStatus": "RESOURCE_EXHAUSTED", "percentage": {"value": 100}}}
    await mesh.apply(vision(virtual({"route": [to("v1")], "fault": abort})))
    answer = await mesh.call(DOMAIN)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert mesh.backends["v1"].calls == []


async def test_aborts_with_an_http_status_for_a_percentage(mesh, vision):
    abort = {"abort": {"httpStatus": 503, "percentage": {"value": 25}}}
    await mesh.apply(vision(virtual({"route": [to("v1")], "fault": abort})))
    (made,) = routes(mesh)
    fault = made["typed_per_filter_config"]["envoy.filters.http.fault"]
    assert fault["abort"] == {
        "http_status": 503,
        "percentage": {"numerator": 250_000, "denominator": "MILLION"},
    }
    answers = await asyncio.gather(*(mesh.call(DOMAIN) for _ in range(400)))
    failed = sum(each.code is grpc.StatusCode.UNAVAILABLE for each in answers)
    assert abs(failed - 100) < 6 * (400 * 0.25 * 0.75) ** 0.5


async def test_delays(mesh, vision):
    delay = {"delay": {"fixedDelay": "3600s", "percentage": {"value": 100}}}
    await mesh.apply(vision(virtual({"route": [to("v1")], "fault": delay})))
    answer = await mesh.call(DOMAIN, within_s=0.3)
    assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert mesh.backends["v1"].calls == []


async def test_a_direct_response_needs_no_server(mesh, vision):
    down = {"directResponse": {"status": 503, "body": {"string": "closed for repair"}}}
    await mesh.apply(vision(virtual(down)))
    assert (await mesh.call(DOMAIN)).code is grpc.StatusCode.UNAVAILABLE
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{mesh.port}/x"
        async with session.get(url, headers={"host": DOMAIN}) as answer:
            assert (answer.status, await answer.text()) == (503, "closed for repair")


async def test_redirects(mesh, vision):
    moved = {
        "redirect": {
            "uri": "/v2/x",
            "authority": "new.example.com",
            "scheme": "https",
            "derivePort": "FROM_REQUEST_PORT",
            "redirectCode": 308,
        }
    }
    await mesh.apply(vision(virtual(moved)))
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{mesh.port}/x"
        async with session.get(url, headers={"host": DOMAIN}, allow_redirects=False) as answer:
            assert answer.status == 308
            assert answer.headers["location"] == f"https://new.example.com:{mesh.port}/v2/x"


@pytest.mark.parametrize(
    ("match", "rewrite", "path", "expected"),
    [
        ({"prefix": "/old/"}, {"uri": "/new/"}, "/old/a", "/new/a"),
        ({"exact": "/old"}, {"uri": "/new"}, "/old", "/new"),
        (
            {"prefix": "/"},
            {"uriRegexRewrite": {"match": "^/v([0-9]+)/(.*)$", "rewrite": "/\\2/\\1"}},
            "/v7/infer",
            "/infer/7",
        ),
        ({"prefix": "/"}, {"authority": "inside.example"}, "/a", "/a"),
    ],
)
async def test_rewrites(mesh, match, rewrite, path, expected):
    rest = entry({"v1": mesh.http.port}, host="rest.models.svc.cluster.local", protocol="HTTP")
    rewritten = {"match": [{"uri": match}], "rewrite": rewrite, "route": [to(host="rest")]}
    state = {f"127.0.0.1:{mesh.http.port}": next(iter(mesh.states.values()))}
    await mesh.apply(text(gateway(mesh.port), rest, virtual(rewritten)), state)
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{mesh.port}{path}"
        async with session.get(url, headers={"host": DOMAIN}) as answer:
            told = await answer.json()
    assert told["path"] == expected
    assert told["host"] == rewrite.get("authority", DOMAIN)


async def test_cors_for_browsers(mesh, vision):
    cors = {
        "allowOrigins": [{"exact": "https://app.example.com"}],
        "allowMethods": ["POST"],
        "allowHeaders": ["x-grpc-web"],
        "exposeHeaders": ["grpc-status"],
        "maxAge": "600s",
        "allowCredentials": True,
    }
    _, *others = vision(virtual({"route": [to("v1")], "corsPolicy": cors})).split("\n---\n")
    web_port = mesh.ports[1]
    await mesh.apply("\n---\n".join((text(gateway(web_port, protocol="GRPC-WEB")), *others)))
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{web_port}{METHOD}"
        headers = {
            "host": DOMAIN,
            "origin": "https://app.example.com",
            "access-control-request-method": "POST",
        }
        async with session.options(url, headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
            assert answer.headers["access-control-allow-methods"] == "POST"
            assert answer.headers["access-control-allow-headers"] == "x-grpc-web"
            assert answer.headers["access-control-max-age"] == "600"
            assert answer.headers["access-control-allow-credentials"] == "true"
        web = {
            "host": DOMAIN,
            "origin": "https://app.example.com",
            "content-type": "application/grpc-web+proto",
        }
        async with session.post(url, headers=web, data=b"\0\0\0\0\0") as answer:
            assert answer.headers["access-control-expose-headers"] == "grpc-status"
            assert answer.headers["content-type"] == "application/grpc-web+proto"
            content = await answer.read()
    assert b'"v1"' in content
    assert b"grpc-status:0" in content


async def test_two_objects_may_route_one_domain_and_catch_alls_come_last(mesh, vision):
    all_ = virtual({"route": [to("v1")]}, name="a")
    some = virtual({"match": [{"headers": {"x-b": {}}}], "route": [to("v2")]}, name="b")
    await mesh.apply(vision(all_, some))
    assert [each["route"]["cluster"] for each in routes(mesh)] == [cluster("v2"), cluster("v1")]
    assert (await mesh.call(DOMAIN, ("x-b", "1"))).backend == "v2"
    assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_spans_are_named_for_the_destination(mesh, vision):
    exact = {"match": [{"uri": {"exact": "/a.B/C"}}], "route": [to("v1")]}
    split = {"route": [to("v2", 1), to("v1", 1)]}
    await mesh.apply(vision(virtual(exact, split)))
    assert [each["decorator"]["operation"] for each in routes(mesh)] == [
        f"{VISION}:8500/a.B/C",
        f"vision:{mesh.port}/*",
    ]


async def test_a_destination_without_port_takes_the_only_one_or_the_one_that_is_called(mesh):
    ports = [
        {"number": 8500, "name": "main", "protocol": "GRPC"},
        {"number": mesh.port, "name": "other", "protocol": "GRPC"},
    ]
    endpoint = {
        "address": "127.0.0.1",
        "ports": {"main": mesh.backends["v1"].port, "other": mesh.backends["v2"].port},
    }
    two = entry([endpoint], ports=ports)
    await mesh.apply(text(gateway(mesh.port), two, rule(subsets=()), virtual({"route": [to()]})))
    (made,) = routes(mesh)
    assert made["route"]["cluster"] == f"outbound|{mesh.port}||{VISION}"
    assert (await mesh.call(DOMAIN)).backend == "v2"
