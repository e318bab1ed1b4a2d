"""The same objects have the same effect here and on a cluster: Tidegate and a real istiod compared.

Each case gives the same objects to both, and sends the same requests to the Envoy of each. The test
compares what clients and servers see: who answered what, and what arrived. A case states its
expected result too, so that both cannot be wrong in the same way.
"""

import json
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio
from envoy_harness import METHOD
from istiod import TwinMesh
from mesh_objects import DOMAIN, VISION, entry, everywhere, gateway, rule, to, virtual

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def twin(tmp_path_factory):
    async with TwinMesh.running(tmp_path_factory.mktemp("twin")) as running:
        yield running


WEB = "web.models.svc.cluster.local"

# Not compared: the client's name, and the identifiers that each side adds to requests.
_OWN = {
    *("accept", "accept-encoding", "content-length", "date", "grpc-accept-encoding", "server"),
    *("traceparent", "user-agent", "x-request-id"),
}


def web(twin, **spec):
    """A host with an HTTP server that answers with what it got."""
    return entry(
        [{"address": "127.0.0.1", "ports": {"main": twin.ours.http.port}}],
        *(WEB, 80, "HTTP"),
        location="MESH_EXTERNAL",
        **spec,
    )


def vision(twin, subsets=("v1", "v2", "v3"), policy=None):
    """A gateway for all hosts, and a host with three gRPC servers as subsets."""
    ports = {name: backend.port for name, backend in twin.ours.backends.items()}
    return gateway(twin.ours.port), entry(ports), rule(policy, subsets)


def kept(headers):
    return {
        name.lower(): value
        for name, value in headers.items()
        if name.lower() not in _OWN and not name.lower().startswith("x-envoy-")
    }


async def same_call(twin, *metadata, authority=DOMAIN, **how):
    """Makes a gRPC call through both Envoys, asserts equal answers, and returns one."""
    ours, istios = await twin.call(authority, *metadata, **how)
    for each in (ours, istios):
        each.headers, each.metadata = kept(each.headers), kept(each.metadata)
        each.remaining_s = None
    assert ours == istios
    return ours


async def same_get(twin, host, path="/", headers=None, **how):
    """Makes an HTTP request through both Envoys, asserts equal answers, and returns one."""
    ours, istios = [
        _got(twin, side, *answer)
        for side, answer in zip(
            ("ours", "istios"), await twin.get(host, path, headers, **how), strict=True
        )
    ]
    assert ours == istios
    return ours


def _got(twin, side, status, headers, text):
    headers = kept(headers)
    if side == "istios" and "location" in headers:
        for ours, istios in twin.istio_ports.items():
            headers["location"] = headers["location"].replace(f":{istios}", f":{ours}")
    try:
        said = json.loads(text)
    except ValueError:
        said = text
    else:
        said["headers"] = kept(said["headers"])
    return Got(status, headers, said)


@dataclass
class Got:
    """The result of an HTTP request for the client, and what the server got."""

    status: int
    headers: dict
    said: dict | str


def at(uri, **more):
    return {"match": [{"uri": uri, **more}], "route": [to(host="web")]}


# A VirtualService for each, under its own domain: rules, then requests with path and headers, each
# with its expected result.
RULES = {
    "exact": (
        [at({"exact": "/a"})],
        {("/a", ()): "/a", ("/a/", ()): 404, ("/a?q=1", ()): "/a?q=1"},
    ),
    "prefix": ([at({"prefix": "/a"})], {("/ab", ()): "/ab", ("/a/b", ()): "/a/b", ("/b", ()): 404}),
    "regex": ([at({"regex": "/v[0-9]+/.*"})], {("/v12/x", ()): "/v12/x", ("/w/v1/", ()): 404}),
    "any-case": (
        [at({"prefix": "/Api"}, ignoreUriCase=True)],
        {("/aPI/x", ()): "/aPI/x", ("/bpi", ()): 404},
    ),
    "query": (
        [
            {
                "match": [{"queryParams": {"v": {"exact": "2"}}}],
                "route": [to(host="web")],
            }
        ],
        {("/?v=2", ()): "/?v=2", ("/?v=3", ()): 404, ("/", ()): 404},
    ),
    "header": (
        [{"match": [{"headers": {"x-a": {"prefix": "be"}}}], "route": [to(host="web")]}],
        {("/", (("x-a", "beta"),)): "/", ("/", (("x-a", "alpha"),)): 404, ("/", ()): 404},
    ),
    "header-there": (
        [{"match": [{"headers": {"x-a": {}}}], "route": [to(host="web")]}],
        {("/", (("x-a", "1"),)): "/", ("/", ()): 404},
    ),
    "without-header": (
        [{"match": [{"withoutHeaders": {"x-a": {"exact": "1"}}}], "route": [to(host="web")]}],
        {("/", (("x-a", "1"),)): 404, ("/", (("x-a", "2"),)): "/", ("/", ()): "/"},
    ),
    "method": (
        [{"match": [{"method": {"exact": "POST"}}], "route": [to(host="web")]}],
        {("/", ()): 404},
    ),
    "rewritten": (
        [at({"prefix": "/a/"}) | {"rewrite": {"uri": "/b/"}}],
        {("/a/x?q=1", ()): "/b/x?q=1"},
    ),
    "rewritten-slash": (
        [at({"prefix": "/a"}) | {"rewrite": {"uri": "/"}}],
        {("/a", ()): "/", ("/ab", ()): "/b"},
    ),
    "rewritten-regex": (
        [
            at({"prefix": "/"})
            | {"rewrite": {"uriRegexRewrite": {"match": "/v([0-9])/(.*)", "rewrite": r"/\2/\1"}}}
        ],
        {("/v1/x", ()): "/x/1"},
    ),
    "first-wins": (
        [
            at({"prefix": "/a"}) | {"rewrite": {"uri": "/one"}},
            at({"prefix": "/"}) | {"rewrite": {"uri": "/two"}},
        ],
        {("/a", ()): "/one", ("/b", ()): "/twob"},
    ),
    "direct": (
        [{"directResponse": {"status": 418, "body": {"string": "tea"}}}],
        {("/", ()): 418},
    ),
    "abort": (
        [
            {
                "fault": {"abort": {"httpStatus": 451, "percentage": {"value": 100}}},
                "route": [to(host="web")],
            }
        ],
        {("/", ()): 451},
    ),
    "redirect": ([{"redirect": {"uri": "/new", "authority": "other.test"}}], {("/old", ()): 301}),
    "redirect-scheme": (
        [{"redirect": {"scheme": "https", "redirectCode": 308}}],
        {("/a", ()): 308},
    ),
    "redirect-port": ([{"redirect": {"derivePort": "FROM_REQUEST_PORT"}}], {("/a", ()): 301}),
    "headers": (
        [
            {
                "headers": {
                    "request": {"set": {"x-a": "set"}, "add": {"x-b": "new"}, "remove": ["x-c"]},
                    "response": {"set": {"x-d": "back"}},
                },
                "route": [to(host="web")],
            }
        ],
        {("/", (("x-a", "old"), ("x-b", "old"), ("x-c", "old"))): "/"},
    ),
    "cors": (
        [
            {
                "corsPolicy": {
                    "allowOrigins": [{"exact": "https://a.test"}],
                    "allowMethods": ["GET"],
                    "maxAge": "24h",
                },
                "route": [to(host="web")],
            }
        ],
        {("/", (("origin", "https://a.test"),)): "/", ("/", (("origin", "https://b.test"),)): "/"},
    ),
}


async def test_rules(twin, subtests):
    services = [
        virtual(*http, hosts=[f"{name}.test"], name=name) for name, (http, _) in RULES.items()
    ]
    await twin.apply(gateway(twin.ours.port, protocol="HTTP"), web(twin), *services)
    for name, (_, requests) in RULES.items():
        for (path, headers), expected in requests.items():
            with subtests.test(f"{name} {path} {headers}"):
                got = await same_get(twin, f"{name}.test", path, dict(headers))
                if isinstance(expected, int):
                    assert got.status == expected
                else:
                    assert (got.status, got.said["path"]) == (200, expected)


async def test_a_mirror_gets_a_copy_of_each_request(twin):
    mirrored = {"route": [to("v1")], "mirror": {"host": VISION, "subset": "v2"}}
    await twin.apply(*vision(twin), virtual(mirrored))
    assert (await same_call(twin)).backend == "v1"
    await twin.ours.backends["v2"].got(2)


async def test_weights_of_zero_take_nothing(twin):
    await twin.apply(*vision(twin), virtual({"route": [to("v1", 0), to("v2", 100)]}))
    for _ in range(10):
        assert (await same_call(twin)).backend == "v2"


@pytest.mark.parametrize("hashed", [("v1", "v2"), ("v1",), ("v2",)], ids="-".join)
async def test_users_stay_after_a_finished_shift(twin, hashed):
    """A destination of weight 0 has a hash policy too; 10 users, two replicas each."""
    keys = {
        name: {"loadBalancer": {"consistentHash": {"httpHeaderName": f"x-user-{name}"}}}
        for name in hashed
    }
    subsets = [
        {"name": name, "labels": {"app": "vision"}}
        | ({"trafficPolicy": keys[name]} if name in keys else {})
        for name in ("v1", "v2")
    ]
    endpoints = [
        {
            "address": "127.0.0.1",
            "ports": {"main": backend.port},
            "labels": {"app": "vision"},
        }
        for backend in twin.ours.backends.values()
    ]
    await twin.apply(
        *(gateway(twin.ours.port), entry(endpoints), rule(None, subsets)),
        virtual({"route": [to("v1", 0), to("v2", 100)]}),
    )
    for key in hashed:
        for user in range(10):
            header = (f"x-user-{key}", str(user))
            taken = [await twin.call(DOMAIN, header) for _ in range(12)]
            ours, istios = ({each[side].backend for each in taken} for side in (0, 1))
            assert (len(ours) == 1) == (len(istios) == 1), (key, user, ours, istios)


async def test_several_services_of_a_host_on_one_gateway_are_merged(twin):
    one = virtual(at({"prefix": "/one"}), name="a-one", hosts=["web.test"])
    two = virtual(at({"prefix": "/two"}), name="b-two", hosts=["web.test"])
    rest = virtual({"route": [to(host="web")], "rewrite": {"uri": "/rest"}}, name="a-all",
                   hosts=["web.test"])  # fmt: skip
    await twin.apply(gateway(twin.ours.port, protocol="HTTP"), web(twin), one, two, rest)
    for path, arrives in {"/one": "/one", "/two": "/two", "/three": "/restthree"}.items():
        assert (await same_get(twin, "web.test", path)).said["path"] == arrives


async def test_a_service_of_the_gateways_own_namespace_comes_first(twin):
    """A VirtualService that is exported only to its own namespace comes first."""
    public = virtual({"directResponse": {"status": 201}}, hosts=["web.test"], name="a-public")
    private = virtual(
        {"directResponse": {"status": 202}},
        hosts=["web.test"],
        name="z-private",
        gateways=["models/in"],
        namespace="istio-ingress",
    )
    private["spec"]["exportTo"] = ["."]
    await twin.apply(gateway(twin.ours.port, protocol="HTTP"), web(twin), public, private)
    assert (await same_get(twin, "web.test")).status == 202


async def test_a_redirect_of_all_hosts_leaves_those_that_are_served(twin):
    """`httpsRedirect` of a wildcard, and a server of the port that serves a host in plain text."""
    redirecting = gateway(twin.ours.port, ["*"], "HTTP", name="all", tls={"httpsRedirect": True})
    plain = gateway(twin.ours.port, ["web.test"], "HTTP", name="plain")
    service = virtual({"route": [to(host="web")]}, hosts=["web.test"], gateways=["plain"])
    await twin.apply(redirecting, plain, web(twin), service)
    assert (await same_get(twin, "web.test")).status == 200
    await same_get(twin, "other.test")


async def test_rules_of_other_proxies_are_not_merged(twin):
    """Two DestinationRules of a host, one for its own namespace only."""
    gate, host, public = vision(twin, ["v1"])
    private = rule(None, [{"name": "v1", "labels": {"version": "v2"}}])
    private["metadata"]["name"] = "another"
    private["spec"]["exportTo"] = ["."]
    await twin.apply(gate, host, public, private, virtual({"route": [to("v1")]}))
    assert (await same_call(twin)).backend == "v1"


async def test_endpoints_of_two_entries_for_one_host_are_all_there(twin):
    backends = list(twin.ours.backends.items())
    one, two = entry(dict(backends[:1])), entry(dict(backends[1:2]))
    for each, ports in ((one, backends[:1]), (two, backends[1:2])):
        each["spec"]["endpoints"] = [
            {
                "address": "127.0.0.1",
                "ports": {"main": backend.port},
                "labels": {"version": name},
            }
            for name, backend in ports
        ]
    two["metadata"]["name"] = "second"
    await twin.apply(gateway(twin.ours.port), one, two, virtual({"route": [to()]}))
    for side in (0, 1):
        answers = {(await twin.call(DOMAIN))[side].backend for _ in range(20)}
        assert answers == {"v1", "v2"}


async def test_a_host_that_dns_finds_needs_no_endpoints(twin):
    local = entry([], "web.localhost", twin.ours.http.port, "HTTP", resolution="DNS",
                  location="MESH_EXTERNAL")  # fmt: skip
    del local["spec"]["endpoints"]
    await twin.apply(
        gateway(twin.ours.port, protocol="HTTP"),
        local,
        virtual({"route": [to(host="web.localhost")]}, hosts=["web.test"]),
    )
    assert (await same_get(twin, "web.test")).status == 200


async def test_a_port_without_a_protocol_is_http_1(twin):
    """The port's name does not set its protocol, so gRPC does not pass."""
    gate, host, subsets = vision(twin)
    host["spec"]["ports"] = [{"number": 8500, "name": "grpc"}]
    for each in host["spec"]["endpoints"]:
        each["ports"] = {"grpc": each["ports"]["main"]}
    await twin.apply(gate, host, subsets, everywhere())
    # How the connection breaks is chance, and so are the details.
    ours, istios = await twin.call(DOMAIN)
    assert ours.code is istios.code is not grpc.StatusCode.OK


@pytest.mark.parametrize("protocol", ["GRPC-WEB", "HTTP", "HTTP2", "GRPC"])
async def test_browsers_are_served_where_the_gateway_speaks_grpc_web(twin, protocol):
    _, host, subsets = vision(twin)
    await twin.apply(gateway(twin.ours.port, protocol=protocol), host, subsets, everywhere())
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    got = [
        status == 200 and kept(headers).get("content-type", "").startswith("application/grpc-web")
        for status, headers, _ in await twin.get(
            DOMAIN, METHOD, headers, method="POST", data=bytes(5)
        )
    ]
    assert got[0] == got[1] == (protocol == "GRPC-WEB")


async def test_retries(twin):
    """The number of attempts of a failing call: by default, and with rules."""
    failing = ("x-do", "fail UNAVAILABLE")
    for retries in (
        None,
        {"attempts": 0},
        {"attempts": 3},
        {"attempts": 2, "retryOn": "cancelled"},
    ):
        routed = {"route": [to("v1")]} | ({"retries": retries} if retries else {})
        await twin.apply(*vision(twin), virtual(routed))
        backend, tried = twin.ours.backends["v1"], []
        for port in (twin.ours.port, twin.istio_ports[twin.ours.port]):
            backend.calls.clear()
            assert (await twin.ours.call(DOMAIN, failing, port=port)).code is (
                grpc.StatusCode.UNAVAILABLE
            )
            tried.append(len(backend.calls))
        assert tried[0] == tried[1], retries
