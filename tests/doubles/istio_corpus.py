"""Objects on which Tidegate's compiler and istiod are compared: worlds of many small cases.

A world is a list of objects that both read at once. Its cases do not touch each other: each has a
host, a domain or a port of its own, whose name says what the case is about. Every field that the
compiler takes is in a case (`supported_fields`).
"""

from mesh_objects import istio

INGRESS = "istio-ingress"
NAMESPACE = "models"
HTTP_PORT = 8080
CERTIFICATE = "/etc/certs/tls.crt"
KEY = "/etc/certs/tls.key"
AUTHORITY = "/etc/certs/ca.crt"
REVOKED = "/etc/certs/crl.pem"


def service(name):
    """The full name of a host."""
    return f"{name}.{NAMESPACE}.svc.cluster.local"


def entry(name, *, protocol="GRPC", port=8500, **spec):
    """A host with two endpoints, v1 and v2."""
    made = {
        "hosts": [service(name)],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": port, "name": "main", "protocol": protocol}],
        "endpoints": [
            {"address": f"10.1.0.{number}", "labels": {"version": f"v{number}"}}
            for number in (1, 2)
        ],
    }
    return istio("ServiceEntry", name, made | spec)


def subset(name, policy=None):
    return {"name": name, "labels": {"version": name}} | (
        {"trafficPolicy": policy} if policy else {}
    )


def rule(name, policy=None, subsets=("v1", "v2"), host=None, **spec):
    """A DestinationRule of a host, with two subsets."""
    made = {"host": host or service(name), "subsets": [subset(each) for each in subsets]}
    if policy:
        made["trafficPolicy"] = policy
    return istio("DestinationRule", name, made | spec)


def to(name, version=None, weight=None, port=None, **more):
    """A destination of a route."""
    destination = {"host": service(name)}
    if version:
        destination["subset"] = version
    if port:
        destination["port"] = {"number": port}
    return {"destination": destination} | ({} if weight is None else {"weight": weight}) | more


def server(port, *hosts, protocol="HTTP", name=None, **more):
    return {
        "port": {"number": port, "name": name or f"p{port}", "protocol": protocol},
        "hosts": list(hosts),
    } | more


def gateway(name, *servers):
    selector = {"istio": "ingress"}
    return istio("Gateway", name, {"selector": selector, "servers": list(servers)})


def at_port(policy, port=8500):
    return {"portLevelSettings": [{"port": {"number": port}} | policy]}


# --- traffic policies -----------------------------------------------------------------------------

_HASHES = {
    "hash-header": {"httpHeaderName": "x-user"},
    "hash-cookie": {"httpCookie": {"name": "user", "path": "/p", "ttl": "30s"}},
    "hash-session-cookie": {"httpCookie": {"name": "user", "ttl": "0s"}},
    "hash-cookie-only-read": {"httpCookie": {"name": "user"}},
    "hash-query": {"httpQueryParameterName": "user"},
    "hash-source": {"useSourceIp": True},
    "hash-ring": {"httpHeaderName": "x-user", "ringHash": {"minimumRingSize": 64}},
    "hash-ring-default": {"httpHeaderName": "x-user", "ringHash": {}},
    "hash-ring-zero": {"httpHeaderName": "x-user", "ringHash": {"minimumRingSize": 0}},
    "hash-old-ring": {"httpHeaderName": "x-user", "minimumRingSize": 128},
    "hash-maglev": {"httpHeaderName": "x-user", "maglev": {"tableSize": 251}},
}
_POOLS = {
    "tcp-connections": {"tcp": {"maxConnections": 10}},
    "tcp-connections-zero": {"tcp": {"maxConnections": 0}},
    "tcp-connect-timeout": {"tcp": {"connectTimeout": "1.5s"}},
    "tcp-duration": {"tcp": {"maxConnectionDuration": "600s"}},
    "tcp-keepalive": {"tcp": {"tcpKeepalive": {"probes": 3, "time": "60s", "interval": "10s"}}},
    "tcp-keepalive-empty": {"tcp": {"tcpKeepalive": {}}},
    "tcp-keepalive-part": {"tcp": {"tcpKeepalive": {"time": "1.5s"}}},
    "http-pending": {"http": {"http1MaxPendingRequests": 5}},
    "http-requests": {"http": {"http2MaxRequests": 7}},
    "http-per-connection": {"http": {"maxRequestsPerConnection": 50}},
    "http-retries": {"http": {"maxRetries": 4}},
    "http-idle": {"http": {"idleTimeout": "15s"}},
    "http-streams": {"http": {"maxConcurrentStreams": 30}},
    "http-keepalive": {"http": {"http2KeepAlive": {"interval": "30s", "timeout": "5s"}}},
    "http-upgrade": {"http": {"h2UpgradePolicy": "UPGRADE"}},
    "http-upgrade-streams": {"http": {"h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": 9}},
    "http-no-upgrade": {"http": {"h2UpgradePolicy": "DO_NOT_UPGRADE"}},
    "http-upgrade-default": {"http": {"h2UpgradePolicy": "DEFAULT"}},
    "http-client-protocol": {"http": {"useClientProtocol": True, "maxConcurrentStreams": 9}},
    "http-client-protocol-idle": {"http": {"useClientProtocol": True, "idleTimeout": "9s"}},
    "pool-all": {
        "tcp": {"maxConnections": 1, "connectTimeout": "2s"},
        "http": {"http2MaxRequests": 2, "http1MaxPendingRequests": 3, "maxRetries": 0},
    },
}
_OUTLIERS = {
    "outlier-empty": {},
    "outlier-5xx": {"consecutive5xxErrors": 3},
    "outlier-5xx-off": {"consecutive5xxErrors": 0},
    "outlier-gateway": {"consecutiveGatewayErrors": 4},
    "outlier-gateway-off": {"consecutiveGatewayErrors": 0},
    "outlier-times": {"interval": "5s", "baseEjectionTime": "7s"},
    "outlier-percent": {"maxEjectionPercent": 40},
    "outlier-percent-zero": {"maxEjectionPercent": 0},
    "outlier-health": {"minHealthPercent": 50},
    "outlier-local": {
        "splitExternalLocalOriginErrors": True,
        "consecutiveLocalOriginFailures": 6,
    },
    "outlier-local-only": {"splitExternalLocalOriginErrors": True},
    "outlier-all": {
        "consecutive5xxErrors": 1,
        "consecutiveGatewayErrors": 2,
        "interval": "1s",
        "baseEjectionTime": "2s",
        "maxEjectionPercent": 100,
        "minHealthPercent": 10,
    },
}
_TLS = {
    "tls-off": {"mode": "DISABLE"},
    "tls-simple": {"mode": "SIMPLE"},
    "tls-sni": {"mode": "SIMPLE", "sni": "a.test", "caCertificates": AUTHORITY},
    "tls-names": {"mode": "SIMPLE", "subjectAltNames": ["a.test", "b.test"], "sni": "a.test"},
    "tls-names-only": {"mode": "SIMPLE", "subjectAltNames": ["a.test"]},
    "tls-skip": {"mode": "SIMPLE", "insecureSkipVerify": True},
    "tls-crl": {"mode": "SIMPLE", "caCertificates": AUTHORITY, "caCrl": REVOKED},
    "tls-mutual": {
        "mode": "MUTUAL",
        "clientCertificate": CERTIFICATE,
        "privateKey": KEY,
        "caCertificates": AUTHORITY,
        "sni": "a.test",
    },
}
_BALANCERS = {
    "simple-unspecified": {"simple": "UNSPECIFIED"},
    "simple-random": {"simple": "RANDOM"},
    "simple-round-robin": {"simple": "ROUND_ROBIN"},
    "simple-least-request": {"simple": "LEAST_REQUEST"},
    "balancer-empty": {},
    "warmup": {"simple": "ROUND_ROBIN", "warmup": {"duration": "30s"}},
    "warmup-all": {
        "simple": "LEAST_REQUEST",
        "warmup": {"duration": "30s", "minimumPercent": 20, "aggression": 2},
    },
    "warmup-unspecified": {"warmup": {"duration": "30s", "aggression": 1.5}},
    "warmup-old": {"simple": "LEAST_REQUEST", "warmupDurationSecs": "20s"},
    "warmup-old-round-robin": {"simple": "ROUND_ROBIN", "warmupDurationSecs": "20s"},
    "warmup-zero-percent": {
        "simple": "ROUND_ROBIN",
        "warmup": {"duration": "30s", "minimumPercent": 0},
    },
}
POLICIES = {
    **{name: {"loadBalancer": {"consistentHash": each}} for name, each in _HASHES.items()},
    **{name: {"loadBalancer": each} for name, each in _BALANCERS.items()},
    **{name: {"connectionPool": each} for name, each in _POOLS.items()},
    **{name: {"outlierDetection": each} for name, each in _OUTLIERS.items()},
    **{name: {"tls": each} for name, each in _TLS.items()},
}
_BUDGETS = {
    "budget": {"retryBudget": {"percent": 30, "minRetryConcurrency": 5}},
    "budget-empty": {"retryBudget": {}},
    "budget-retries": {
        "retryBudget": {"percent": 30},
        "connectionPool": {"http": {"maxRetries": 3}},
    },
}


def _policy_world():
    """Each policy for a host, for a subset, and for a port of either."""
    for name, policy in POLICIES.items():
        places = {
            "rule": (policy, [subset("v1"), subset("v2")]),
            "port": (at_port(policy), [subset("v1")]),
            "subset": (None, [subset("v1", policy), subset("v2")]),
            "subset-port": (None, [subset("v1", at_port(policy))]),
        }
        for place, (of_rule, subsets) in places.items():
            yield from _ruled(f"{name}-{place}", of_rule, subsets)
    for name, policy in _BUDGETS.items():
        yield from _ruled(f"{name}-rule", policy, [subset("v1")])
        yield from _ruled(f"{name}-subset", None, [subset("v1", policy)])
    pool, outliers = (
        {"connectionPool": _POOLS["pool-all"]},
        {"outlierDetection": {"interval": "3s"}},
    )
    mixed = {
        "mixed-inherits": (pool | outliers, [subset("v1", {"loadBalancer": {"simple": "RANDOM"}})]),
        "mixed-replaces": (
            pool,
            [subset("v1", {"connectionPool": {"tcp": {"maxConnections": 9}}})],
        ),
        "mixed-port": (pool | at_port(outliers), [subset("v1", _BUDGETS["budget"])]),
        "mixed-subset-port": (
            pool | outliers,
            [subset("v1", at_port({"tls": {"mode": "SIMPLE"}}))],
        ),
        "mixed-both-ports": (
            at_port(pool),
            [subset("v1", at_port(outliers)), subset("v2", {"tls": {"mode": "SIMPLE"}})],
        ),
        "mixed-other-port": (at_port(pool, 9999), [subset("v1")]),
        "mixed-budget": (_BUDGETS["budget"], [subset("v1", at_port(pool)), subset("v2", pool)]),
        "mixed-port-budget": (_BUDGETS["budget"] | at_port(pool), [subset("v1", outliers)]),
    }
    for name, (policy, subsets) in mixed.items():
        yield from _ruled(name, policy, subsets)


def _ruled(name, policy, subsets):
    made = {"host": service(name), "subsets": subsets}
    if policy:
        made["trafficPolicy"] = policy
    yield entry(name)
    yield istio("DestinationRule", name, made)


# --- hosts ----------------------------------------------------------------------------------------

_PROTOCOLS = ("GRPC", "GRPC-WEB", "HTTP", "HTTP2", "HTTPS", "TCP", "TLS")


def _host_world():
    """Hosts with each protocol, resolution and kind of endpoint."""
    upgrade = {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}
    for protocol in _PROTOCOLS:
        name = f"protocol-{protocol.lower()}"
        yield entry(name, protocol=protocol)
        yield entry(f"{name}-upgraded", protocol=protocol)
        yield rule(f"{name}-upgraded", upgrade)
    unnamed = [{"number": 8500, "name": "grpc"}]
    yield entry("protocol-none", ports=unnamed)
    yield entry("external", location="MESH_EXTERNAL")
    yield entry(
        "target-port",
        ports=[{"number": 8500, "name": "main", "protocol": "GRPC", "targetPort": 9500}],
    )
    yield entry(
        "two-ports",
        ports=[
            {"number": 8500, "name": "grpc", "protocol": "GRPC"},
            {"number": 8501, "name": "http", "protocol": "HTTP", "targetPort": 9501},
        ],
        endpoints=[
            {"address": "10.1.0.1", "ports": {"grpc": 9, "http": 10}, "weight": 3},
            {"address": "10.1.0.2", "ports": {"grpc": 11}, "labels": {"version": "v1", "app": "a"}},
            {"address": "10.1.0.3", "weight": 0},
        ],
    )
    yield entry(
        "empty-subset",
        endpoints=[{"address": "10.1.0.1", "labels": {"version": "v9"}}],
    )
    yield rule("empty-subset")
    yield rule("all-subset", subsets=())
    yield entry("all-subset")
    labelled = {"app": "vision", "service.istio.io/canonical-name": "seer", "version": "v7"}
    yield entry("labels", endpoints=[{"address": "10.1.0.1", "labels": labelled}])
    yield entry(
        "locality",
        endpoints=[
            {"address": "10.1.0.1", "locality": "eu/west/1"},
            {"address": "10.1.0.2", "locality": "eu/west/2", "weight": 5},
        ],
    )
    yield entry("ipv6", endpoints=[{"address": "2001:db8::1"}])
    yield entry("two-hosts", hosts=[service("two-hosts"), "second.test"])
    yield entry("private", exportTo=["."])
    yield entry("public", exportTo=["*"])
    selected = entry("selected", workloadSelector={"labels": {"app": "selected"}})
    del selected["spec"]["endpoints"]
    yield selected
    for number, more in ((1, {"weight": 4}), (2, {"ports": {"main": 77}, "locality": "eu/a"})):
        spec = {"address": f"10.2.0.{number}", "labels": {"app": "selected"}}
        yield istio("WorkloadEntry", f"workload-{number}", spec | more)
    one = [{"address": "a.example.com"}]
    two = [{"address": "a.example.com"}, {"address": "b.example.com", "ports": {"main": 7}}]
    for resolution in ("DNS", "DNS_ROUND_ROBIN"):
        name = resolution.lower().replace("_", "-")
        yield entry(f"{name}-one", resolution=resolution, endpoints=one)
        yield entry(f"{name}-itself", resolution=resolution, endpoints=[])
        yield entry(f"{name}-ruled", resolution=resolution, endpoints=one)
        yield rule(f"{name}-ruled", {"loadBalancer": {"simple": "ROUND_ROBIN"}})
    yield entry("dns-two", resolution="DNS", endpoints=two)
    together = service("together")
    first = entry("together-a", hosts=[together], endpoints=[{"address": "10.3.0.1"}])
    second = entry("together-b", hosts=[together], endpoints=[{"address": "10.3.0.2"}])
    yield from (first, second)
    twice = [{"address": "10.3.0.1", "weight": 2}, {"address": "10.3.0.1", "weight": 9}]
    yield entry("twice", endpoints=twice)
    half_hidden = service("half-hidden")
    yield entry("half-hidden-a", hosts=[half_hidden], exportTo=["."])
    yield entry("half-hidden-b", hosts=[half_hidden], endpoints=[{"address": "10.3.0.9"}])
    # Two rules of one host are merged.
    yield entry("merged")
    yield rule("merged-a", {"loadBalancer": {"simple": "RANDOM"}}, ["v1"], service("merged"))
    yield rule("merged-b", None, ["v2"], service("merged"))
    yield entry("own")
    own = rule("own-b", {"loadBalancer": {"simple": "RANDOM"}}, ["v1"], service("own"))
    yield own | {"spec": own["spec"] | {"exportTo": ["."]}}
    yield rule("own-a", None, ["v2"], service("own"))


# --- routes ---------------------------------------------------------------------------------------


def _match(**condition):
    return {"match": [condition]}


_TEXTS = {"exact": "abc", "prefix": "ab", "regex": "a.*c"}
_PATHS = {"exact": "/a/b", "prefix": "/a", "regex": "/a/[0-9]+"}
_MATCHES = {
    **{f"uri-{kind}": {"uri": {kind: text}} for kind, text in _PATHS.items()},
    **{
        f"{field}-{kind}": {field: {kind: text}}
        for field, texts in (
            ("scheme", {"exact": "http", "prefix": "ht", "regex": "https?"}),
            ("method", {"exact": "POST", "prefix": "PO", "regex": "P.*"}),
            ("authority", _TEXTS),
        )
        for kind, text in texts.items()
    },
    **{
        f"{field.lower()}-{kind}": {field: {"x-a": {kind: text}}}
        for field in ("headers", "withoutHeaders", "queryParams")
        for kind, text in _TEXTS.items()
    },
    "headers-present": {"headers": {"x-a": {}}},
    "withoutheaders-present": {"withoutHeaders": {"x-a": {}}},
    "queryparams-present": {"queryParams": {"x-a": {}}},
    "headers-two": {"headers": {"x-b": {"exact": "1"}, "x-a": {"exact": "2"}}},
    "headers-both": {"headers": {"x-b": {"exact": "1"}}, "withoutHeaders": {"x-a": {"exact": "2"}}},
    "queryparams-two": {"queryParams": {"b": {"exact": "1"}, "a": {"exact": "2"}}},
    "any-case-exact": {"uri": {"exact": "/A"}, "ignoreUriCase": True},
    "any-case-prefix": {"uri": {"prefix": "/A"}, "ignoreUriCase": True},
    "port-here": {"port": HTTP_PORT, "uri": {"prefix": "/p"}},
    "port-mesh": {"port": 8500, "uri": {"prefix": "/p"}},
    "gateway-here": {"gateways": ["in"], "uri": {"prefix": "/g"}},
    "gateway-mesh": {"gateways": ["mesh"], "uri": {"prefix": "/g"}},
    "match-named": {"name": "first", "uri": {"prefix": "/n"}},
    "match-nothing": {},
    "match-everything": {"uri": {"regex": ".*"}},
    "match-root": {"uri": {"prefix": "/"}},
    "grpc-method": {"uri": {"exact": "/tidegate.vision.v1.VisionService/Classify"}},
    "all-conditions": {
        "uri": {"prefix": "/x"},
        "method": {"exact": "POST"},
        "headers": {"x-a": {"regex": "1+"}},
        "withoutHeaders": {"x-b": {"exact": "2"}},
        "queryParams": {"q": {"exact": "3"}},
    },
}
_CHANGES = {
    "request": {"set": {"x-a": "1"}, "add": {"x-b": "2"}, "remove": ["x-c"]},
    "response": {"set": {"x-d": "3"}, "add": {"x-e": "4"}, "remove": ["x-f"]},
}


def _rules(name):
    """The rules of each case of a route to a host."""
    here = {"route": [to(name)]}
    for case, condition in _MATCHES.items():
        yield case, [_match(**condition) | {"route": [to(name, "v1")]}, {"route": [to(name, "v2")]}]
    yield (
        "two-matches",
        [{"match": [{"uri": {"prefix": "/a"}}, {"uri": {"prefix": "/b"}}], "route": [to(name)]}],
    )
    yield "named", [here | {"name": "vision"}]
    yield "named-match", [_match(name="m", uri={"prefix": "/a"}) | here | {"name": "vision"}]
    yield "after-catch-all", [{"route": [to(name, "v1")]}, {"route": [to(name, "v2")]}]
    weights = {
        "weights": (10, 90),
        "weights-zero": (0, 100),
        "weights-of-any-sum": (1, 2),
        "weights-large": (2**31 - 1, 2**31 - 1),
        "weights-hundred-zero": (100, 0),
    }
    for case, (one, two) in weights.items():
        yield case, [{"route": [to(name, "v1", one), to(name, "v2", two)]}]
    yield "weight-of-one", [{"route": [to(name, "v1", 40)]}]
    yield "weight-left-out", [{"route": [to(name, "v1", 100), to(name, "v2")]}]
    yield "weight-port", [{"route": [to(name, "v1", 5, 8500), to(name, "v2", 95, 8500)]}]
    yield "weight-headers", [{"route": [to(name, "v1", 10, headers=_CHANGES), to(name, "v2", 90)]}]
    yield "destination-headers", [{"route": [to(name, "v1", headers=_CHANGES)]}]
    yield "headers", [here | {"headers": _CHANGES}]
    yield (
        "headers-both-levels",
        [
            {"route": [to(name, "v1", headers=_CHANGES)]}
            | {"headers": {"request": {"set": {"x-a": "0"}}}}
        ],
    )
    authority = {"request": {"set": {":authority": "a.test"}}}
    yield "headers-authority", [here | {"headers": authority}]
    yield "headers-host-added", [here | {"headers": {"request": {"add": {"Host": "a.test"}}}}]
    yield (
        "weight-authority",
        [{"route": [to(name, "v1", 10, headers=authority), to(name, "v2", 90)]}],
    )
    yield (
        "headers-sorted",
        [here | {"headers": {"request": {"set": {"x-b": "1", "x-a": "2"}, "remove": ["z", "y"]}}}],
    )
    yield "timeout", [here | {"timeout": "5s"}]
    yield "timeout-small", [here | {"timeout": "1ms"}]
    retries = {
        "retries-off": {"attempts": 0},
        "retries-three": {"attempts": 3},
        "retries-per-try": {"attempts": 3, "perTryTimeout": "2s"},
        "retries-on": {"attempts": 1, "retryOn": "unavailable,cancelled"},
        "retries-on-status": {"attempts": 1, "retryOn": "503,reset,418"},
        "retries-on-statuses-named": {"attempts": 1, "retryOn": "retriable-status-codes,503"},
        "retries-backoff": {"attempts": 2, "backoff": "50ms"},
        "retries-previous": {"attempts": 2, "retryIgnorePreviousHosts": False},
        "retries-not-previous": {"attempts": 2, "retryIgnorePreviousHosts": True},
        "retries-remote": {"attempts": 2, "retryRemoteLocalities": True},
        "retries-not-remote": {"attempts": 2, "retryRemoteLocalities": False},
        "retries-empty": {},
    }
    for case, each in retries.items():
        yield case, [here | {"retries": each}]
    faults = {
        "fault-abort-http": {"abort": {"httpStatus": 503, "percentage": {"value": 50}}},
        "fault-abort-grpc": {"abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100}}},
        "fault-abort-small": {"abort": {"httpStatus": 503, "percentage": {"value": 0.01}}},
        "fault-abort-cut": {"abort": {"httpStatus": 503, "percentage": {"value": 33.33337}}},
        "fault-abort-inexact": {"abort": {"httpStatus": 503, "percentage": {"value": 0.57}}},
        "fault-abort-never": {"abort": {"httpStatus": 503}},
        "fault-delay": {"delay": {"fixedDelay": "3s", "percentage": {"value": 25.5}}},
        "fault-delay-never": {"delay": {"fixedDelay": "3s"}},
        "fault-both": {
            "delay": {"fixedDelay": "1s", "percentage": {"value": 100}},
            "abort": {"grpcStatus": "INTERNAL", "percentage": {"value": 1}},
        },
    }
    for case, each in faults.items():
        yield case, [here | {"fault": each}]
    mirrored = to(name, "v2", port=8500)["destination"]
    whole = to(name)["destination"]
    yield "mirror", [{"route": [to(name, "v1")], "mirror": mirrored}]
    yield (
        "mirror-percentage",
        [{"route": [to(name, "v1")], "mirror": mirrored, "mirrorPercentage": {"value": 12.5}}],
    )
    yield (
        "mirror-never",
        [{"route": [to(name, "v1")], "mirror": mirrored, "mirrorPercentage": {"value": 0}}],
    )
    several = [
        {"destination": mirrored, "percentage": {"value": 20}},
        {"destination": whole},
        {"destination": to(name, "v1")["destination"], "percentage": {"value": 0}},
    ]
    yield "mirrors", [{"route": [to(name, "v1")], "mirrors": several}]
    cors = {
        "cors": {
            "allowOrigins": [{"exact": "https://a.test"}, {"prefix": "https"}, {"regex": ".*"}],
            "allowMethods": ["GET", "POST"],
            "allowHeaders": ["x-a", "x-b"],
            "exposeHeaders": ["x-c", "x-d"],
            "maxAge": "24h",
            "allowCredentials": True,
        },
        "cors-no-credentials": {"allowOrigins": [{"exact": "a"}], "allowCredentials": False},
        "cors-forward": {"allowOrigins": [{"exact": "a"}], "unmatchedPreflights": "FORWARD"},
        "cors-ignore": {"allowOrigins": [{"exact": "a"}], "unmatchedPreflights": "IGNORE"},
        "cors-unspecified": {
            "allowOrigins": [{"exact": "a"}],
            "unmatchedPreflights": "UNSPECIFIED",
        },
        "cors-age": {"allowOrigins": [{"exact": "a"}], "maxAge": "2s"},
        "cors-empty": {},
    }
    for case, each in cors.items():
        yield case, [here | {"corsPolicy": each}]
    at = _match(uri={"prefix": "/a"})
    rewrites = {
        "rewrite-uri": {"uri": "/b"},
        "rewrite-root": {"uri": "/"},
        "rewrite-authority": {"authority": "b.test"},
        "rewrite-both": {"uri": "/b", "authority": "b.test"},
        "rewrite-regex": {"uriRegexRewrite": {"match": "/(.*)", "rewrite": r"/x/\1"}},
    }
    for case, each in rewrites.items():
        yield case, [at | here | {"rewrite": each}, here]
    yield "rewrite-slash", [_match(uri={"prefix": "/a/"}) | here | {"rewrite": {"uri": "/b/"}}]
    yield "rewrite-exact", [_match(uri={"exact": "/a"}) | here | {"rewrite": {"uri": "/b"}}]
    yield "rewrite-regex-match", [_match(uri={"regex": "/a.*"}) | here | {"rewrite": {"uri": "/b"}}]
    yield "hash-weights", [{"route": [to("hashed", "v1", 50), to("hashed", "v2", 50)]}]
    yield "hash-single", [{"route": [to("hashed", "v1")]}]
    yield "hash-unnamed-port", [{"route": [to("hashed-port")]}]
    yield "hash-named-port", [{"route": [to("hashed-port", port=8500)]}]
    yield "hash-subset", [{"route": [to("hashed-subset", "v1", 50), to("hashed-subset", "v2", 50)]}]
    yield (
        "hash-retries",
        [{"route": [to("hashed", "v1")], "retries": {"attempts": 2, "perTryTimeout": "1s"}}],
    )


def _answers():
    """Rules that no server answers; gRPC clients get them as errors."""
    direct = {
        "direct": {"status": 418},
        "direct-body": {"status": 200, "body": {"string": "tea"}},
        "direct-empty-body": {"status": 404, "body": {"string": ""}},
    }
    for case, each in direct.items():
        yield case, [{"directResponse": each}]
    redirects = {
        "redirect-uri": {"uri": "/new"},
        "redirect-authority": {"authority": "b.test"},
        "redirect-port": {"port": 9443},
        "redirect-port-default": {"port": 80},
        "redirect-from-request": {"derivePort": "FROM_REQUEST_PORT"},
        "redirect-from-protocol": {"derivePort": "FROM_PROTOCOL_DEFAULT"},
        "redirect-scheme": {"scheme": "https"},
        "redirect-https-port": {"scheme": "https", "port": 443},
        **{
            f"redirect-{code}": {"uri": "/new", "redirectCode": code}
            for code in (301, 302, 303, 307, 308)
        },
        "redirect-all": {"uri": "/n", "authority": "b.test", "scheme": "https", "port": 8443},
    }
    for case, each in redirects.items():
        yield case, [{"redirect": each}]


def _route_world():
    yield gateway("in", server(HTTP_PORT, "*"))
    by_user = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
    for name in ("hashed", "hashed-port", "hashed-subset"):
        yield entry(name)
    yield rule("hashed", by_user)
    yield rule("hashed-port", at_port(by_user))
    yield istio(
        "DestinationRule",
        "hashed-subset",
        {"host": service("hashed-subset"), "subsets": [subset("v1", by_user), subset("v2")]},
    )
    yield entry("target")
    yield rule("target")
    for case, http in (*_rules("target"), *_answers()):
        yield entry(case)
        spec = {"hosts": [service(case)], "gateways": ["in", "mesh"], "http": http}
        yield istio("VirtualService", case, spec)
    exported = {"hosts": [service("exported")], "gateways": ["in", "mesh"], "exportTo": ["*"]}
    yield entry("exported")
    yield istio("VirtualService", "exported", exported | {"http": [{"route": [to("target")]}]})
    kept = {"hosts": [service("kept")], "gateways": ["in", "mesh"], "exportTo": ["."]}
    yield entry("kept")
    yield istio("VirtualService", "kept", kept | {"http": [{"route": [to("target")]}]})


# --- gateways -------------------------------------------------------------------------------------


def _gateway_world():
    """Servers of gateways, each on a port of its own."""
    yield entry("target")
    yield rule("target")
    secured = {"mode": "SIMPLE", "serverCertificate": CERTIFICATE, "privateKey": KEY}
    mutual = secured | {"mode": "MUTUAL", "caCertificates": AUTHORITY}
    servers = {
        "plain": server(7001, "*"),
        "named": server(7002, "a.test", name="some-name") | {"name": "a-server"},
        "grpc": server(7003, "*", protocol="GRPC"),
        "http2": server(7004, "*", protocol="HTTP2"),
        "grpc-web": server(7005, "*", protocol="GRPC-WEB"),
        "redirect": server(7006, "*", tls={"httpsRedirect": True}),
        "https": server(7007, "*", protocol="HTTPS", tls=secured),
        "https-names": server(7008, "a.test", "b.test", protocol="HTTPS", tls=secured),
        "mutual": server(7009, "a.test", protocol="HTTPS", tls=mutual),
        "mutual-names": server(
            7010, "a.test", protocol="HTTPS", tls=mutual | {"subjectAltNames": ["x", "y"]}
        ),
        "mutual-crl": server(7011, "a.test", protocol="HTTPS", tls=mutual | {"caCrl": REVOKED}),
        "ciphers": server(
            7012,
            "a.test",
            protocol="HTTPS",
            tls=secured | {"cipherSuites": ["ECDHE-RSA-AES128-GCM-SHA256"]},
        ),
        "tls-1-2": server(
            7013,
            "a.test",
            protocol="HTTPS",
            tls=secured | {"minProtocolVersion": "TLSV1_2", "maxProtocolVersion": "TLSV1_2"},
        ),
        "tls-1-3": server(
            7014,
            "a.test",
            protocol="HTTPS",
            tls=secured | {"minProtocolVersion": "TLSV1_3", "maxProtocolVersion": "TLSV1_3"},
        ),
        "tls-auto": server(
            7015,
            "a.test",
            protocol="HTTPS",
            tls=secured | {"minProtocolVersion": "TLS_AUTO", "maxProtocolVersion": "TLS_AUTO"},
        ),
        "redirect-namespaced": server(7024, "models/a.test", tls={"httpsRedirect": True}),
        "everything": server(7025, "b.test", "*/*", tls={"httpsRedirect": True}),
        "wildcard": server(7016, "*.a.test", "b.test"),
        "namespaced": server(7017, "models/a.test", "./b.test", "*/c.test", "zoo/d.test"),
        "redirect-named": server(7018, "a.test", tls={"httpsRedirect": True}),
        "unused": server(7020, "a.test"),
        "unused-wildcard": server(7021, "*"),
        "https-wildcard": server(7022, "*.a.test", protocol="HTTPS", tls=secured),
        "lower-case": server(7023, "a.test", protocol="http"),
    }
    for name, each in servers.items():
        yield gateway(name, each)
    hosts = ["a.test", "b.test", "c.test", "d.test", "x.a.test"]
    yield istio(
        "VirtualService",
        "served",
        {
            "hosts": hosts,
            "gateways": [name for name in servers if not name.startswith("unused")],
            "http": [{"route": [to("target", "v1")]}],
        },
    )
    yield gateway(
        "two-servers",
        server(7030, "a.test", "*.b.test", name="one"),
        server(7030, "c.test", name="two"),
        server(7031, "a.test", protocol="HTTPS", tls=secured, name="https-one"),
        server(7031, "c.test", protocol="HTTPS", tls=mutual, name="https-two"),
    )
    yield istio(
        "VirtualService",
        "two-servers",
        {
            "hosts": ["a.test", "*.b.test", "c.test"],
            "gateways": ["two-servers"],
            "http": [{"route": [to("target", "v2")]}],
        },
    )
    yield istio(
        "VirtualService",
        "two-servers-b",
        {
            "hosts": ["*.test"],
            "gateways": ["two-servers"],
            "http": [_match(uri={"prefix": "/b"}) | {"route": [to("target", "v1")]}],
        },
    )


WORLDS = {
    "policies": list(_policy_world()),
    "hosts": list(_host_world()),
    "routes": list(_route_world()),
    "gateways": list(_gateway_world()),
}
