"""Random objects of Istio, for Hypothesis: small worlds whose objects meet at few hosts and ports.

Each object is valid by itself, as a cluster sees it. Together they may contradict each other; then
the compiler refuses them, where istiod lets one of two win.
"""

from dataclasses import dataclass

from hypothesis import strategies as st
from istio_corpus import CERTIFICATE, INGRESS, KEY, POLICIES, at_port, entry, service, subset
from mesh_objects import istio

_HOSTS = ("a", "b")
_NAMESPACES = ("models", "models", INGRESS, "istio-system")
_DOMAINS = ("a.test", "b.test", "*.test", "*", "x.a.test", "*.a.test")
_GATEWAYS = ("one", "two")
_EXPORTS = st.sampled_from(([], [], ["*"], ["."]))
_TEXTS = st.sampled_from(({"exact": "/p"}, {"prefix": "/p"}, {"prefix": "/"}, {"regex": "/p.*"}))
_VALUES = st.sampled_from(({"exact": "1"}, {"prefix": "1"}, {"regex": "1+"}, {}))
# These differ in ways that have a decision of their own; here they would only repeat it.
_POLICIES = [each for name, each in POLICIES.items() if not name.startswith(("tls", "tcp-keep"))]


def worlds():
    """Lists of objects."""
    return st.composite(_world)()


def _world(draw):
    hosts = [draw(_entries(name)) for name in _HOSTS]
    hosts += draw(st.lists(st.sampled_from(_HOSTS).flatmap(_entries), max_size=1))
    gateways = _by_name(draw(st.lists(_gateways(), min_size=1, max_size=3)))
    rules = _by_name(draw(st.lists(_rules(), max_size=3)))
    known = _Known(
        tuple(f"{_namespace(each)}/{each['metadata']['name']}" for each in gateways),
        tuple(
            (each["spec"]["host"], one["name"])
            for each in rules
            for one in each["spec"].get("subsets", ())
        ),
    )
    services = _by_name(draw(st.lists(_services(known), max_size=4)))
    return [*_by_name(hosts), *gateways, *rules, *services]


@dataclass(frozen=True)
class _Known:
    """What routes may name: gateways, and subsets of hosts."""

    gateways: tuple
    subsets: tuple


def _by_name(objects):
    """The objects; the last of several with one name."""
    return list({(_namespace(each), each["metadata"]["name"]): each for each in objects}.values())


def _namespace(item):
    return item["metadata"]["namespace"]


@st.composite
def _entries(draw, name):
    protocol = draw(st.sampled_from(("GRPC", "GRPC", "HTTP", "HTTP2", "TCP")))
    ports = [{"number": 8500, "name": "main", "protocol": protocol}]
    if draw(st.booleans()):
        ports.append({"number": 8501, "name": "other", "protocol": "HTTP"})
    versions = draw(st.lists(st.sampled_from(("v1", "v2", "v3")), max_size=3, unique=True))
    endpoints = [
        {"address": f"10.1.0.{version[1:]}", "labels": {"version": version, "app": name}}
        for version in versions or ["v1"]
    ]
    if draw(st.booleans()):
        endpoints[0]["weight"] = draw(st.sampled_from((1, 7)))
    spec = {"ports": ports, "endpoints": endpoints, "exportTo": draw(_EXPORTS)}
    made = entry(name, **spec)
    made["spec"]["location"] = draw(st.sampled_from(("MESH_INTERNAL", "MESH_EXTERNAL")))
    made["metadata"] |= {
        "namespace": draw(st.sampled_from(("models", "models", INGRESS))),
        "name": draw(st.sampled_from((name, f"{name}-more"))),
    }
    return _without_empty(made)


@st.composite
def _gateways(draw):
    name = draw(st.sampled_from(_GATEWAYS))
    servers = [draw(_servers(index)) for index in range(draw(st.integers(1, 2)))]
    namespace = draw(st.sampled_from(("models", INGRESS)))
    return istio("Gateway", name, {"selector": {"istio": "ingress"}, "servers": servers}, namespace)


@st.composite
def _servers(draw, index):
    owners = st.sampled_from(("", "", "", "./", "*/", "models/"))
    hosts = draw(st.lists(st.sampled_from(_DOMAINS), min_size=1, max_size=2, unique=True))
    server = {"hosts": [draw(owners) + each for each in hosts]}
    kind = draw(st.sampled_from(("HTTP", "GRPC", "GRPC-WEB", "redirect", "HTTPS")))
    number = 8443 if kind == "HTTPS" else draw(st.sampled_from((8080, 8081)))
    protocol = "HTTP" if kind == "redirect" else kind
    server["port"] = {"number": number, "name": f"p{index}", "protocol": protocol}
    if kind == "redirect":
        server["tls"] = {"httpsRedirect": True}
    elif kind == "HTTPS":
        server["tls"] = {"mode": "SIMPLE", "serverCertificate": CERTIFICATE, "privateKey": KEY}
    return server


@st.composite
def _rules(draw):
    name = draw(st.sampled_from(_HOSTS))
    policies = st.sampled_from((None, None, *_POLICIES))
    names = draw(st.lists(st.sampled_from(("v1", "v2", "v3")), max_size=3, unique=True))
    subsets = []
    for each in names:
        made = subset(each)
        policy = draw(policies)
        if policy:
            made["trafficPolicy"] = at_port(policy) if draw(st.booleans()) else policy
        if draw(st.integers(0, 5)) == 0:
            made["labels"] = {"app": name}
        subsets.append(made)
    spec = {"host": service(name), "subsets": subsets, "exportTo": draw(_EXPORTS)}
    policy, of_port = draw(policies), draw(policies)
    if policy:
        spec["trafficPolicy"] = dict(policy)
    if of_port:
        spec["trafficPolicy"] = spec.get("trafficPolicy", {}) | at_port(of_port)
    namespace = draw(st.sampled_from(_NAMESPACES))
    return _without_empty(
        istio("DestinationRule", draw(st.sampled_from((name, f"{name}-more"))), spec, namespace)
    )


@st.composite
def _services(draw, known):
    gateways = draw(st.lists(st.sampled_from(known.gateways), max_size=2, unique=True))
    hosts = draw(st.lists(st.sampled_from(_DOMAINS), max_size=2, unique=True)) if gateways else []
    hosts = [each for each in hosts if each != "*" or len(hosts) == 1]
    if not hosts or draw(st.booleans()):
        gateways = [*gateways, "mesh"]
        hosts = [each for each in hosts if not each.startswith("*")]
        hosts.append(service(draw(st.sampled_from(_HOSTS))))
    http = draw(st.lists(_routes(tuple(gateways), known), min_size=1, max_size=3))
    spec = {"hosts": hosts, "gateways": gateways, "http": http, "exportTo": draw(_EXPORTS)}
    name = draw(st.sampled_from(("r1", "r2", "r3", "r4")))
    namespace = draw(st.sampled_from(("models", "models", INGRESS)))
    return _without_empty(istio("VirtualService", name, spec, namespace))


@st.composite
def _routes(draw, gateways, known):
    rule = {"match": draw(st.lists(_matches(gateways), max_size=2))}
    kind = draw(st.integers(0, 8))
    if kind == 0:
        rule["directResponse"] = {"status": 418}
    elif kind == 1:
        rule["redirect"] = draw(
            st.sampled_from(
                ({"uri": "/new"}, {"scheme": "https"}, {"derivePort": "FROM_REQUEST_PORT"})
            )
        )
    else:
        rule["route"] = draw(_destinations(known))
        rule |= draw(_extras())
    rule["headers"] = draw(
        st.sampled_from(({}, {}, {"request": {"set": {"x-b": "1"}}, "response": {"remove": ["x"]}}))
    )
    return _without_empty(rule)


@st.composite
def _destinations(draw, known):
    count = draw(st.integers(1, 3))
    made = []
    for _ in range(count):
        destination = {"host": service(draw(st.sampled_from(_HOSTS)))}
        versions = [name for host, name in known.subsets if host == destination["host"]]
        version = draw(st.sampled_from((None, *versions, *versions)))
        if version:
            destination["subset"] = version
        if draw(st.integers(0, 3)):
            destination["port"] = {"number": 8500}
        made.append({"destination": destination})
    if count > 1:
        weights = draw(
            st.lists(st.sampled_from((0, 1, 50, 100)), min_size=count, max_size=count).filter(any)
        )
        for each, weight in zip(made, weights, strict=True):
            each["weight"] = weight
    return made


@st.composite
def _extras(draw):
    chosen = draw(
        st.lists(
            st.sampled_from(
                (
                    {"timeout": "3s"},
                    {"retries": {"attempts": 0}},
                    {"retries": {"attempts": 3, "retryOn": "503,unavailable"}},
                    {"retries": {"attempts": 3, "perTryTimeout": "1s", "backoff": "50ms"}},
                    {"fault": {"abort": {"httpStatus": 503, "percentage": {"value": 12.5}}}},
                    {"rewrite": {"authority": "c.test"}},
                    {"rewrite": {"uri": "/new"}},
                    {"corsPolicy": {"allowOrigins": [{"exact": "a"}], "maxAge": "10s"}},
                    {"mirror": {"host": service("a")}},
                    {"mirrors": [{"destination": {"host": service("a")}}]},
                    {"name": "named"},
                )
            ),
            max_size=2,
        )
    )
    made = {}
    for each in chosen:
        if not ({"mirror", "mirrors"} & made.keys() and {"mirror", "mirrors"} & each.keys()):
            made |= each
    return made


@st.composite
def _matches(draw, gateways):
    condition = {}
    if draw(st.booleans()):
        condition["uri"] = draw(_TEXTS)
    if draw(st.integers(0, 2)) == 0:
        condition["headers"] = {"x-a": draw(_VALUES)}
    if draw(st.integers(0, 4)) == 0:
        condition["withoutHeaders"] = {"x-c": draw(_VALUES)}
    if draw(st.integers(0, 4)) == 0:
        condition["queryParams"] = {"q": draw(_VALUES)}
    if draw(st.integers(0, 4)) == 0:
        condition["method"] = {"exact": "POST"}
    if draw(st.integers(0, 4)) == 0:
        condition["port"] = draw(st.sampled_from((8080, 8081, 8500)))
    if draw(st.integers(0, 4)) == 0:
        condition["gateways"] = [draw(st.sampled_from(gateways))]
    return condition


def _without_empty(value):
    """Leaves out fields that are empty lists or messages."""
    spec = value.get("spec", value)
    for name in [name for name, each in spec.items() if each in ([], {})]:
        del spec[name]
    return value
