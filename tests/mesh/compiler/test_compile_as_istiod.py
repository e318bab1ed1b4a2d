"""The compiler makes what istiod makes of the same objects, case by case.

istiod's side was recorded from istiod 1.32-dev (commit eed52ebb66ad, August 2026). It read the
objects from a file and sent the result to a gateway in the namespace ``istio-ingress``. Routes are
written in a short form: path, destinations with weights, hash policies; ``https`` is a redirect of
all requests.
"""

import pytest
from mesh_objects import HTTP_OPTIONS, VISION, body, entry, istio, names, rule, text, virtual

from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import Compiler, MeshSettings
from tidegate.mesh.resources import ProxyKind

PORT = 8080
INGRESS = "istio-ingress"
HTTPS = {"httpsRedirect": True}
BY_USER = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
BY_SESSION = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-session"}}}
IN_TURN = {"loadBalancer": {"simple": "ROUND_ROBIN"}}


def server(*hosts, redirect=False):
    tls = {"tls": HTTPS} if redirect else {}
    return {"hosts": hosts, "port": {"number": PORT, "name": "in", "protocol": "HTTP"}} | tls


def gateway(name, *servers, namespace=INGRESS):
    named = [each | {"port": each["port"] | {"name": f"p{n}"}} for n, each in enumerate(servers)]
    return istio("Gateway", name, {"selector": {"istio": "ingress"}, "servers": named}, namespace)


def to(subset, weight=None, **destination):
    destination = {"host": VISION, "subset": subset} | destination
    return {"destination": destination} | ({} if weight is None else {"weight": weight})


def route(name, *http, host="a.test", gateways=(f"{INGRESS}/in",), namespace="models", **spec):
    """A VirtualService; the short form of a rule is ``path subset``."""
    rules = [at(each) if isinstance(each, str) else each for each in http]
    hosts = [host] if isinstance(host, str) else host
    made = virtual(*rules, hosts=hosts, gateways=gateways, name=name, namespace=namespace)
    made["spec"] |= spec
    return made


def at(short, **match):
    path, subset = short.split()
    return {"match": [{"uri": {"prefix": path}} | match], "route": [to(subset)]}


PLAIN = gateway("in", server("*"))
HOST = entry({"v1": 1, "v2": 2, "v3": 3})
RULE = rule()


def hashed(*destinations, policy=None, **of_subsets):
    """A route to destinations, and the traffic policies of their DestinationRule."""
    subsets = [{"name": each, "labels": {"version": each}} for each in ("v1", "v2", "v3")]
    for each in subsets:
        if each["name"] in of_subsets:
            each["trafficPolicy"] = of_subsets[each["name"]]
    return [PLAIN, rule(policy, subsets), route("x", {"route": list(destinations)})]


def at_port(policy, port=8500):
    return {"portLevelSettings": [{"port": {"number": port}} | policy]}


ROUTES = {
    "of the same age: by name, whatever the namespace": (
        [PLAIN, route("b", "/p v1", namespace="a"), route("a", "/p v2", namespace="z")],
        {"a.test": ["/p* v2", "/p* v1"]},
    ),
    "of the same age and name: by namespace": (
        [PLAIN, route("a", "/p v1", namespace="z"), route("a", "/p v2", namespace="y")],
        {"a.test": ["/p* v2", "/p* v1"]},
    ),
    "what the proxies' namespace keeps to itself comes first": (
        [
            PLAIN,
            route("a", "/p v1", namespace="a"),
            route("z", "/p v2", namespace=INGRESS, exportTo=["."]),
        ],
        {"a.test": ["/p* v2", "/p* v1"]},
    ),
    "gateways by name, before VirtualServices by name": (
        [
            gateway("b", server("a.test"), namespace="a"),
            gateway("a", server("a.test"), namespace="b"),
            route("a", "/p v1", gateways=["a/b"]),
            route("b", "/p v2", gateways=["b/a"]),
        ],
        {"a.test": ["/p* v2", "/p* v1"]},
    ),
    "servers as they are written, before VirtualServices by name": (
        [
            gateway("in", server("zoo/a.test"), server("a.test")),
            route("a", "/p v1"),
            route("z", "/p v2", namespace="zoo"),
        ],
        {"a.test": ["/p* v2", "/p* v1"]},
    ),
    "catch-alls of all come last": (
        [PLAIN, route("a", "/ v1"), route("b", "/p v2"), route("c", "/q v3", "/ v2")],
        {"a.test": ["/p* v2", "/q* v3", "/* v1", "/* v2"]},
    ),
    "a condition with a header is no catch-all": (
        [PLAIN, route("a", at("/ v1", headers={"x": {"exact": "1"}})), route("b", "/p v2")],
        {"a.test": ["/* v1 if x", "/p* v2"]},
    ),
    "through two gateways: first what holds at the first of them": (
        [
            gateway("a", server("a.test")),
            gateway("b", server("a.test")),
            route(
                "x",
                at("/p v1", gateways=[f"{INGRESS}/b"]),
                "/p v2",
                gateways=[f"{INGRESS}/a", f"{INGRESS}/b"],
            ),
        ],
        {"a.test": ["/p* v2", "/p* v1"]},
    ),
    "a domain of which no rule holds at the port is left to others": (
        [PLAIN, route("a", at("/ v1", port=9999)), route("b", "/ v2", host="*.test")],
        {"*.test": ["/* v2"]},
    ),
    "a domain of which no rule holds at the gateway is left to others": (
        [
            PLAIN,
            route("a", at("/ v1", gateways=["mesh"]), gateways=[f"{INGRESS}/in", "mesh"]),
            route("b", "/ v2", host="*"),
        ],
        {"*": ["/* v2"]},
    ),
    "exportTo '.' in the Gateway's namespace, but not the proxies'": (
        [
            gateway("in", server("*"), namespace="models"),
            route("a", "/ v1", gateways=["models/in"], exportTo=["."]),
        ],
        {},
    ),
    "exportTo '.' in the proxies' namespace, but not the Gateway's": (
        [
            gateway("in", server("*"), namespace="models"),
            route("a", "/ v1", gateways=["models/in"], namespace=INGRESS, exportTo=["."]),
        ],
        {"a.test": ["/* v1"]},
    ),
    "a wildcard server redirects: a host that another gateway serves is not": (
        [
            gateway("all", server("*", redirect=True)),
            gateway("in", server("a.test")),
            route("a", "/ v1"),
        ],
        {"*": ["https"], "a.test": ["/* v1"]},
    ),
    "a wildcard server redirects: a VirtualService that it meets is": (
        [gateway("in", server("*.test", redirect=True), server("a.test")), route("a", "/ v1")],
        {"*.test": ["https"], "a.test": ["https"]},
    ),
    "a wildcard server redirects: one that meets both gateways is": (
        [
            gateway("all", server("*", redirect=True)),
            gateway("in", server("a.test")),
            route("a", "/ v1", gateways=[f"{INGRESS}/all", f"{INGRESS}/in"]),
        ],
        {"*": ["https"], "a.test": ["https"]},
    ),
    "a server redirects by name: whoever serves it": (
        [
            gateway("all", server("a.test", "b.test", redirect=True)),
            gateway("in", server("*.test")),
            route("a", "/ v1"),
            route("c", "/ v2", host="c.test"),
        ],
        {"a.test": ["https"], "b.test": ["https"], "c.test": ["/* v2"]},
    ),
    "a server redirects a name for one namespace: not where another routes it": (
        [
            gateway("all", server("team/a.test", redirect=True)),
            gateway("in", server("a.test")),
            route("a", "/ v1"),
        ],
        {"a.test": ["/* v1"]},
    ),
    "a server redirects a name that one before it redirects: it is ignored": (
        [
            gateway("a", server("*.test", redirect=True)),
            gateway("in", server("*.test", "b.org", redirect=True)),
            route("a", "/ v1"),
            route("b", "/ v1", host="b.org"),
        ],
        {"*.test": ["https"]},
    ),
    "hash: a destination without weight has no say": (
        hashed(to("v1", 0), to("v2", 100), v1=BY_USER, v2=BY_SESSION),
        {"a.test": ["/* v2=100 by x-session"]},
    ),
    "hash: the only destination has, whatever its weight": (
        hashed(to("v1", 0), v1=BY_USER),
        {"a.test": ["/* v1 by x-user"]},
    ),
    "hash: those with weight in order": (
        hashed(to("v1", 1), to("v2", 1), v1=BY_USER, v2=BY_SESSION),
        {"a.test": ["/* v1=1 v2=1 by x-user x-session"]},
    ),
    "hash: the rule's, for a subset without one": (
        hashed(to("v1"), policy=BY_USER, v1=IN_TURN),
        {"a.test": ["/* v1 by x-user"]},
    ),
    "hash: only for the port, and the route names none": (
        hashed(to("v1"), policy=at_port(BY_USER)),
        {"a.test": ["/* v1"]},
    ),
    "hash: only for the port, and the route names it": (
        hashed(to("v1", port={"number": 8500}), policy=at_port(BY_USER)),
        {"a.test": ["/* v1 by x-user"]},
    ),
    "hash: only for the subset's port, and the route names none": (
        hashed(to("v1"), policy=BY_SESSION, v1=at_port(BY_USER)),
        {"a.test": ["/* v1 by x-session"]},
    ),
    "hash: the subset's port before the subset before the rule's port": (
        hashed(
            to("v1", 1, port={"number": 8500}),
            to("v2", 1, port={"number": 8500}),
            policy=at_port({"loadBalancer": {"consistentHash": {"httpHeaderName": "x-port"}}}),
            v1=BY_SESSION | at_port(BY_USER),
            v2=BY_SESSION,
        ),
        {"a.test": ["/* v1=1 v2=1 by x-user x-session"]},
    ),
}


def virtual_hosts(compiled):
    found = (body(compiled, "VIRTUAL_HOST", each) for each in names(compiled, "VIRTUAL_HOST"))
    by_domain = {domain: in_short(each) for each in found for domain in each["domains"]}
    # A gateway without routes needs a virtual host; istiod calls it ``blackhole``.
    return {} if by_domain == {"*": []} else by_domain


def in_short(virtual_host):
    if virtual_host.get("require_tls") == "ALL":
        return ["https"]
    # istiod repeats routes that are bound through two servers; Envoy uses the first.
    return list(dict.fromkeys(map(_in_short, virtual_host.get("routes", ()))))


def _in_short(made):
    match, action = made["match"], made["route"]
    words = [f"{match['prefix']}*"]
    parts = action.get("weighted_clusters", {}).get("clusters", ())
    words += [f"{_subset(each['name'])}={each['weight']}" for each in parts]
    words += [_subset(action["cluster"])] if "cluster" in action else []
    hashes = [each["header"]["header_name"] for each in action.get("hash_policy", ())]
    words += ["by", *hashes] if hashes else []
    conditions = [each["name"] for each in match.get("headers", ())]
    return " ".join(words + (["if", *conditions] if conditions else []))


def _subset(cluster):
    return cluster.split("|")[2]


def compiled_from(*objects):
    return Compiler(MeshSettings()).compile(parse(text(*objects), "case"), {})


@pytest.mark.parametrize("case", ROUTES)
def test_routes_are_those_of_istiod(case):
    objects, sent = ROUTES[case]
    rules = () if any(each["kind"] == "DestinationRule" for each in objects) else (RULE,)
    assert virtual_hosts(compiled_from(HOST, *rules, *objects)) == sent


def of_rule(name, *subsets, policy=None, export=None, namespace="models"):
    spec = {"host": VISION}
    if subsets:
        spec["subsets"] = [{"name": each, "labels": {"version": each}} for each in subsets]
    spec |= {"trafficPolicy": policy} if policy else {}
    spec |= {"exportTo": [export]} if export else {}
    return istio("DestinationRule", name, spec, namespace)


LEAST, TURN, CHANCE = "LEAST_REQUEST", "ROUND_ROBIN", "RANDOM"
BY_CHANCE = {"loadBalancer": {"simple": "RANDOM"}}

CLUSTERS = {
    "rules that are exported alike are one": (
        [of_rule("a", "v1", policy=IN_TURN), of_rule("b", "v2")],
        {"": TURN, "v1": TURN, "v2": TURN},
    ),
    "rules that are exported differently are not: the last decides": (
        [
            of_rule("a", "v1", policy=IN_TURN, export=".", namespace=INGRESS),
            of_rule("b", "v2", export="*", namespace=INGRESS),
        ],
        {"": LEAST, "v2": LEAST},
    ),
    "to export to all and to say nothing is not alike": (
        [of_rule("a", "v1", policy=IN_TURN, export="*"), of_rule("b", "v2")],
        {"": LEAST, "v2": LEAST},
    ),
    "one joins those before it that are exported alike": (
        [
            of_rule("a", "v1", export="*", namespace=INGRESS),
            of_rule("b", "v2", export=".", namespace=INGRESS),
            of_rule("c", "v3", export=".", namespace=INGRESS),
        ],
        {"": LEAST, "v2": LEAST, "v3": LEAST},
    ),
    "one that is exported otherwise than the last stands for itself": (
        [
            of_rule("a", "v1", export=".", namespace=INGRESS),
            of_rule("b", "v2", export="*", namespace=INGRESS),
            of_rule("c", "v3", export=".", namespace=INGRESS),
        ],
        {"": LEAST, "v3": LEAST},
    ),
    "what another namespace keeps to itself is not seen": (
        [of_rule("a", "v1", policy=IN_TURN), of_rule("b", "v2", policy=BY_CHANCE, export=".")],
        {"": TURN, "v1": TURN},
    ),
    "the proxies' namespace, then the host's, then the root": (
        [
            of_rule("a", "v1", policy=IN_TURN, namespace="istio-system"),
            of_rule("b", "v2", policy=BY_CHANCE),
        ],
        {"": CHANCE, "v2": CHANCE},
    ),
}


def clusters_in_short(clusters):
    return {_subset(each["name"]): each.get("lb_policy", "ROUND_ROBIN") for each in clusters}


@pytest.mark.parametrize("case", CLUSTERS)
def test_the_rule_for_a_host_is_that_of_istiod(case):
    objects, sent = CLUSTERS[case]
    compiled = compiled_from(HOST, *objects)
    found = [body(compiled, "CLUSTER", each) for each in names(compiled, "CLUSTER")]
    assert clusters_in_short(found) == sent


@pytest.mark.parametrize(
    ("rule_of_root", "sent"),
    [
        (of_rule("a", policy=IN_TURN, export=".", namespace="istio-system"), TURN),
        (of_rule("a", policy=IN_TURN, namespace="istio-system"), CHANCE),
    ],
    ids=["kept to itself", "exported"],
)
def test_proxies_of_the_root_namespace_prefer_what_it_keeps_to_itself(rule_of_root, sent):
    settings = MeshSettings(proxy_namespace="istio-system")
    objects = parse(text(HOST, rule_of_root, of_rule("b", policy=BY_CHANCE)), "case")
    compiled = Compiler(settings).compile(objects, {})
    (cluster,) = [body(compiled, "CLUSTER", each) for each in names(compiled, "CLUSTER")]
    assert cluster.get("lb_policy", "ROUND_ROBIN") == sent


MIRROR = {"host": VISION, "subset": "v2"}
MIRRORS = {
    "all": ({"mirror": MIRROR}, [100]),
    "a share": ({"mirror": MIRROR, "mirrorPercentage": {"value": 12.5}}, [12.5]),
    "none": ({"mirror": MIRROR, "mirrorPercentage": {"value": 0}}, []),
    "several": (
        {"mirrors": [{"destination": MIRROR}, {"destination": MIRROR, "percentage": {"value": 3}}]},
        [100, 3],
    ),
}


@pytest.mark.parametrize("case", MIRRORS)
def test_mirrors_are_those_of_istiod(case):
    rule_with_mirror, shares = MIRRORS[case]
    compiled = compiled_from(
        HOST, RULE, PLAIN, route("x", {"route": [to("v1")]} | rule_with_mirror)
    )
    made = body(compiled, "VIRTUAL_HOST", f"http.{PORT}/a.test")["routes"][0]["route"]
    policies = made.get("request_mirror_policies", [])
    # Envoy marks copies here, so that an access log can tell them from requests.
    marks = [each.pop("request_headers_mutations") for each in policies]
    assert all("x-tidegate-mirrored" in str(each) for each in marks)
    assert [mirrored(each) for each in policies] == [
        {
            "cluster": f"outbound|8500|v2|{VISION}",
            "percent": share,
            "trace_sampled": False,
            "disable_shadow_host_suffix_append": True,
        }
        for share in shares
    ]


def mirrored(policy):
    share = policy.pop("runtime_fraction")["default_value"]
    parts = {"HUNDRED": 1, "MILLION": 10_000}[share.get("denominator", "HUNDRED")]
    return policy | {"percent": share["numerator"] / parts}


def test_the_edge_is_that_of_istiod():
    listener = body(compiled_from(PLAIN), "LISTENER", f"0.0.0.0_{PORT}")
    (chain,) = listener["filter_chains"]
    assert chain["transport_socket_connect_timeout"] == "15s"
    made = chain["filters"][0]["typed_config"]
    sent = {
        "use_remote_address": True,
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": dict.fromkeys(("subject", "cert", "dns", "uri"), True),
        "proxy_100_continue": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "stream_idle_timeout": "0s",
        "normalize_path": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
    }
    assert {key: made.get(key) for key in sent} == sent


def test_a_client_protocol_has_no_http_2_settings_as_in_istiod():
    pool = {
        "useClientProtocol": True,
        "http2KeepAlive": {"interval": "9s", "timeout": "3s"},
        "idleTimeout": "5s",
    }
    policy = {"connectionPool": {"http": pool | {"maxConcurrentStreams": 7}}}
    compiled = compiled_from(HOST, rule(policy, ()))
    made = body(compiled, "CLUSTER", f"outbound|8500||{VISION}")
    options = dict(made["typed_extension_protocol_options"][HTTP_OPTIONS])
    del options["@type"]
    assert options == {
        "common_http_protocol_options": {"idle_timeout": "5s"},
        "use_downstream_protocol_config": {
            "http_protocol_options": {},
            "http2_protocol_options": {},
        },
    }


CLIENTS = {
    "no rule holds in the mesh": (
        [route("x", at("/ v1", gateways=[f"{INGRESS}/in"]), host=VISION, gateways=["mesh"])],
        [""],
    ),
    "no rule holds at the port": (
        [route("x", at("/ v1", port=9999), host=VISION, gateways=["mesh"])],
        [""],
    ),
    "a rule holds": (
        [route("x", at("/ v1", port=8500), host=VISION, gateways=["mesh"])],
        ["v1"],
    ),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_routes_of_grpc_clients_are_those_of_istiod(case):
    objects, sent = CLIENTS[case]
    compiled = compiled_from(HOST, RULE, PLAIN, *objects)
    routes = body(compiled, "ROUTE", f"outbound|8500||{VISION}", ProxyKind.GRPC)
    found = [each["route"]["cluster"] for each in routes["virtual_hosts"][0]["routes"]]
    assert [_subset(each) for each in found] == sent
