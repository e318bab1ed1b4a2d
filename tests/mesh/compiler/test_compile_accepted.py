"""Envoy and gRPC accept everything that the parser and the compiler accept.

Each sample of the fields of a route and of a host goes to a real Envoy and a real gRPC client.
Neither may refuse any of it. (Envoy checks with protoc-gen-validate and its own rules, and a
refusal is a NACK.)
"""

import pytest
from examples import examples
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mesh_objects import DOMAIN, VISION, entry, gateway, rule, text, to, virtual

from tidegate.istio.errors import IstioObjectErrors
from tidegate.mesh.compiler import CompileErrors

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBER = st.integers(0, 2**31 - 1)
SECONDS = st.integers(1, 100_000).map(lambda ms: f"{ms / 1000}s")
SHARE = st.integers(0, 10_000).map(lambda parts: parts / 100)
PERCENT = SHARE.map(lambda value: {"value": value})
WORD = st.text("abcxyz-", min_size=1, max_size=8).map(lambda word: f"x{word}")
HEADERS = st.dictionaries(WORD, WORD, max_size=2)


def any_of(**fields):
    """A dictionary with any part of some fields."""
    return st.fixed_dictionaries({}, optional=fields)


def some(**fields):
    """A dictionary with one or more of some fields."""
    return any_of(**fields).filter(bool)


TEXT_MATCH = st.one_of(
    WORD.map(lambda word: {"exact": word}),
    WORD.map(lambda word: {"prefix": word}),
    st.sampled_from([{"regex": "a.*|b"}, {"regex": ".*"}]),
)
PATH_MATCH = st.one_of(
    WORD.map(lambda word: {"exact": f"/{word}"}),
    WORD.map(lambda word: {"prefix": f"/{word}"}),
    st.sampled_from([{"regex": "/v[0-9]+/.*"}, {"prefix": "/"}, {"regex": ".*"}]),
)
MATCH = any_of(
    name=WORD,
    uri=PATH_MATCH,
    method=TEXT_MATCH,
    authority=TEXT_MATCH,
    scheme=TEXT_MATCH,
    headers=st.dictionaries(WORD, st.one_of(TEXT_MATCH, st.just({})), max_size=2),
    withoutHeaders=st.dictionaries(WORD, st.one_of(TEXT_MATCH, st.just({})), max_size=2),
    queryParams=st.dictionaries(WORD, st.one_of(TEXT_MATCH, st.just({})), max_size=2),
    gateways=st.sampled_from([["in"], ["mesh"], ["in", "mesh"]]),
)
OPERATIONS = any_of(set=HEADERS, add=HEADERS, remove=st.lists(WORD, max_size=2))
HEADER_CHANGES = any_of(request=OPERATIONS, response=OPERATIONS)
DESTINATION = st.builds(
    lambda subset, weight, headers: to(subset, weight, headers=headers),
    st.sampled_from(["v1", "v2", "v3", None]),
    NUMBER,
    HEADER_CHANGES,
)
FORWARD = st.fixed_dictionaries(
    {"route": st.lists(DESTINATION, min_size=1, max_size=4)},
    optional={
        "timeout": SECONDS,
        "retries": st.fixed_dictionaries(
            {"attempts": st.integers(1, 100)},
            optional={
                "perTryTimeout": SECONDS,
                "retryOn": st.sampled_from(
                    ["unavailable", "503,504", "5xx,resource-exhausted,429"]
                ),
                "backoff": SECONDS,
                "retryIgnorePreviousHosts": st.booleans(),
                "retryRemoteLocalities": st.booleans(),
            },
        ),
        "rewrite": st.sampled_from(
            [
                {"uri": "/a"},
                {"authority": "b.test"},
                {"uriRegexRewrite": {"match": "/(.*)", "rewrite": "/x/\\1"}},
            ]
        ),
        "fault": some(
            delay=st.builds(
                lambda delay, percent: {"fixedDelay": delay, "percentage": percent},
                SECONDS,
                PERCENT,
            ),
            abort=st.one_of(
                st.builds(
                    lambda status, percent: {"httpStatus": status, "percentage": percent},
                    st.integers(200, 599),
                    PERCENT,
                ),
                st.builds(
                    lambda status, percent: {"grpcStatus": status, "percentage": percent},
                    st.sampled_from(["OK", "CANCELLED", "UNAVAILABLE", "DATA_LOSS"]),
                    PERCENT,
                ),
            ),
        ),
        "mirrors": st.lists(
            st.builds(
                lambda to_, percent: {"destination": to_["destination"], "percentage": percent},
                DESTINATION,
                PERCENT,
            ),
            max_size=2,
        ),
        "corsPolicy": any_of(
            allowOrigins=st.lists(TEXT_MATCH, max_size=2),
            allowMethods=st.just(["POST", "GET"]),
            allowHeaders=st.lists(WORD, max_size=2),
            maxAge=st.integers(0, 10_000).map("{}s".format),
            allowCredentials=st.booleans(),
            unmatchedPreflights=st.sampled_from(["FORWARD", "IGNORE"]),
        ),
        "headers": HEADER_CHANGES,
        "name": WORD,
    },
)
OTHER = st.one_of(
    st.builds(
        lambda status, body: {"directResponse": {"status": status, "body": {"string": body}}},
        st.integers(200, 599),
        st.text(" abc{}%\n", max_size=20),
    ),
    st.builds(
        lambda redirect, code: {"redirect": {"uri": "/x", **redirect, "redirectCode": code}},
        any_of(
            authority=WORD, port=st.integers(1, 65535), scheme=st.sampled_from(["http", "https"])
        ),
        st.sampled_from([301, 302, 303, 307, 308]),
    ),
)
RULE = st.builds(
    lambda action, match: action | ({"match": match} if match else {}),
    st.one_of(FORWARD, FORWARD, OTHER),
    st.lists(MATCH, max_size=2),
)
BALANCER = st.one_of(
    st.sampled_from(["RANDOM", "ROUND_ROBIN", "LEAST_REQUEST"]).map(lambda each: {"simple": each}),
    st.builds(
        lambda each, duration, percent, aggression: {
            "simple": each,
            "warmup": {
                "duration": duration,
                "minimumPercent": percent,
                "aggression": aggression,
            },
        },
        st.sampled_from(["ROUND_ROBIN", "LEAST_REQUEST"]),
        SECONDS,
        SHARE,
        st.integers(1, 100),
    ),
    st.builds(
        lambda key, ring: {"consistentHash": key | ring},
        st.sampled_from(
            [
                {"httpHeaderName": "x-a"},
                {"httpCookie": {"name": "a", "ttl": "0s"}},
                {"httpCookie": {"name": "a"}},
                {"useSourceIp": True},
                {"httpQueryParameterName": "q"},
            ]
        ),
        st.sampled_from([{}, {"maglev": {"tableSize": 251}}, {"ringHash": {"minimumRingSize": 9}}]),
    ),
)
POOL = some(
    tcp=some(
        maxConnections=NUMBER,
        connectTimeout=SECONDS,
        maxConnectionDuration=SECONDS,
        tcpKeepalive=some(probes=NUMBER, time=SECONDS, interval=SECONDS),
    ),
    http=some(
        http1MaxPendingRequests=NUMBER,
        http2MaxRequests=NUMBER,
        maxRequestsPerConnection=NUMBER,
        maxRetries=NUMBER,
        idleTimeout=SECONDS,
        h2UpgradePolicy=st.sampled_from(["DEFAULT", "DO_NOT_UPGRADE"]),
        useClientProtocol=st.booleans(),
        maxConcurrentStreams=NUMBER,
        http2KeepAlive=st.just({"interval": "1s", "timeout": "0.5s"}),
    ),
)
OUTLIERS = some(
    consecutive5xxErrors=NUMBER,
    consecutiveGatewayErrors=NUMBER,
    interval=SECONDS,
    baseEjectionTime=SECONDS,
    maxEjectionPercent=st.integers(0, 100),
    minHealthPercent=st.integers(0, 100),
    splitExternalLocalOriginErrors=st.booleans(),
)
POLICY = any_of(
    loadBalancer=BALANCER,
    connectionPool=POOL,
    outlierDetection=OUTLIERS,
    tls=st.sampled_from(
        [
            {"mode": "DISABLE"},
            {"mode": "SIMPLE", "insecureSkipVerify": True},
            {"mode": "SIMPLE", "sni": "a.test", "subjectAltNames": ["b.test"]},
        ]
    ),
    retryBudget=some(percent=SHARE, minRetryConcurrency=st.integers(1, 1000)),
)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rules=st.lists(RULE, min_size=1, max_size=3),
    policy=POLICY,
    subset=POLICY,
    option=st.sampled_from([None, None, "orca", "full-scan"]),
    sticky=st.booleans(),
)
async def test_nothing_is_refused(mesh, client, rules, policy, subset, option, sticky):
    third = {"name": "v3", "labels": {"version": "v3"}}
    if option:
        # The annotation about load balancing contradicts a load balancer, so leave that out.
        policy, subset = (
            {k: v for k, v in p.items() if k != "loadBalancer"} for p in (policy, subset)
        )
    if subset:
        third["trafficPolicy"] = subset
    subsets = ["v1", "v2", third]
    objects = text(
        gateway(mesh.port),
        gateway(mesh.ports[1], hosts=[DOMAIN], name="exact"),
        entry({name: backend.port for name, backend in mesh.backends.items()}),
        rule(policy, subsets, annotations=option and {"load-balancer": option}),
        virtual(
            *rules,
            hosts=[DOMAIN, VISION],
            gateways=["in", "exact", "mesh"],
            annotations={"sticky": "header:x-a"} if sticky else None,
        ),
    )
    try:
        await mesh.apply(objects)
    except (IstioObjectErrors, CompileErrors):
        assume(False)
    await client.calls(f"{VISION}:8500", 1, within_s=0.05)
    refused = [each for proxy in mesh.distribution.proxies() for each in proxy.rejections]
    assert refused == []
