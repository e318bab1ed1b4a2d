"""Parsing of YAML: the objects, and the errors with their lines and fixes."""

import datetime as dt
import re
import textwrap

import pytest

from tidegate.istio import IstioObjectErrors, Kind, ObjectName, parse
from tidegate.istio.annotations import LoadBalancerOption, Sticky
from tidegate.istio.destination_rule import SimpleLoadBalancer
from tidegate.istio.reading.documents import parse_part
from tidegate.istio.shapes import StringMatch, StringMatchKind
from tidegate.mesh.compiler import unsupported

VISION = ObjectName(Kind.VIRTUAL_SERVICE, "models", "vision")
HEAD = {
    Kind.VIRTUAL_SERVICE: "hosts: [vision]\n",
    Kind.DESTINATION_RULE: "host: vision\n",
    Kind.GATEWAY: "",
    Kind.SERVICE_ENTRY: "hosts: [vision.models.svc.cluster.local]\nresolution: STATIC\n",
    Kind.WORKLOAD_ENTRY: "",
}


def manifest(kind, spec, metadata="", version="v1"):
    return (
        f"apiVersion: networking.istio.io/{version}\nkind: {kind.value}\nmetadata:\n"
        f"  name: vision\n  namespace: models\n{textwrap.indent(metadata, '  ')}"
        f"spec:\n{textwrap.indent(textwrap.dedent(spec), '  ')}\n"
    )


def route(body):
    """Returns a VirtualService whose only route has this body, which starts at line 9."""
    inner = textwrap.indent(textwrap.dedent(body).strip(), "  ")
    return manifest(Kind.VIRTUAL_SERVICE, f"hosts: [vision]\nhttp:\n-\n{inner}\n")


def problems(text):
    return [
        (each.line, each.path, f"{each.problem}; {each.fix}")
        for each in parse_part(text, "mesh.yaml", check=unsupported).problems
    ]


def test_virtual_service_is_read_with_full_names_and_typed_values():
    text = """
        hosts: [vision, vision.example.com]
        gateways: [ingress, edge/public, mesh]
        http:
          - name: beta
            match:
              - uri: {prefix: /tidegate.vision.v1.VisionService/}
                headers: {X-User-Tier: {exact: beta}, x-debug: {}}
            route:
              - destination: {host: vision, subset: v2, port: {number: 8500}}
                weight: 10
              - destination: {host: vision.other.svc.cluster.local}
                weight: 90
            timeout: 1m1.5s
            retries: {attempts: 0}
            mirrors: [{destination: {host: vision, subset: v3}, percentage: {value: 0.5}}]
    """
    sticky = "annotations: {tidegate.dev/sticky: 'header:X-User-ID', other/x: z}\n"
    service = parse(manifest(Kind.VIRTUAL_SERVICE, text, sticky), "x")[VISION]
    assert service.hosts == ("vision.models.svc.cluster.local", "vision.example.com")
    assert service.gateways == ("models/ingress", "edge/public", "mesh")
    assert service.annotations.sticky == Sticky("x-user-id")
    (rule,) = service.http
    assert rule.match[0].headers == {
        "x-user-tier": StringMatch(StringMatchKind.EXACT, "beta"),
        "x-debug": StringMatch(StringMatchKind.PRESENT),
    }
    first, second = (each.destination for each in rule.route)
    assert (first.host, first.subset, first.port) == ("vision.models.svc.cluster.local", "v2", 8500)
    assert second.host == "vision.other.svc.cluster.local"
    assert [each.weight for each in rule.route] == [10, 90]
    assert rule.timeout == dt.timedelta(seconds=61.5)
    assert rule.retries is not None
    assert rule.mirrors[0].percentage == 0.5


def test_destination_rule_is_read():
    text = """
        host: vision
        trafficPolicy:
          loadBalancer: {simple: LEAST_REQUEST, warmup: {duration: 30s}}
          outlierDetection: {consecutive5xxErrors: 3, maxEjectionPercent: 50}
          portLevelSettings: [{port: {number: 8500}, tls: {mode: SIMPLE, sni: a}}]
        subsets: [{name: v1, labels: {version: fp32}}]
    """
    notes = (
        "annotations:\n  tidegate.dev/load-balancer: full-scan\n"
        "  tidegate.dev/always-eject-one-host: 'true'\n"
    )
    objects = parse(manifest(Kind.DESTINATION_RULE, text, notes, "v1beta1"), "x")
    (rule,) = objects.destination_rules.values()
    assert rule.annotations.load_balancer is LoadBalancerOption.FULL_SCAN
    assert rule.annotations.always_eject_one_host
    policy = rule.traffic_policy
    assert policy.load_balancer.simple is SimpleLoadBalancer.LEAST_REQUEST
    assert policy.load_balancer.warmup.duration == dt.timedelta(seconds=30)
    assert policy.outlier_detection.consecutive_5xx_errors == 3
    assert policy.port_level_settings[0].port == 8500
    assert rule.subsets[0].labels == {"version": "fp32"}


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ("weigth: 1", "weigth", "is not a field here; known are name, match, route"),
        ("timeout: 5", "timeout", "is a number '5'; must be a duration such as 1.5s"),
        ("timeout: 5d", "timeout", "'5d' is not a duration; write it like 1.5s, 250ms or 2m"),
        ("timeout: 1500us", "timeout", "1500us has parts of a millisecond; write whole milliseco"),
        ("timeout: 10us", "timeout", "cannot be .*; at least 1ms"),
        ("timeout: {s: 1}", "timeout", "is a mapping; must be a duration"),
        ("delegate: {name: x}", "delegate", "is not supported: routes of several objects are not"),
        ("mirrorPercent: 5", "mirrorPercent", "Istio deprecates it; write 'mirrorPercentage"),
        ("match: [{uri: /x}]", "match[0].uri", r"must be a condition, not text; {exact: /x}"),
        ("match: [{uri: {prefix: ''}}]", "match[0].uri.prefix", "is empty; write what is to match"),
        (
            "match: [{uri: {regex: '(?!a)b'}}]",
            "match[0].uri.regex",
            "is not RE2: invalid perl operator: ",
        ),
        (
            r"match: [{uri: {regex: '(a)\1'}}]",
            "match[0].uri.regex",
            "is not RE2: invalid escape sequence",
        ),
        (
            "match: [{uri: {regex: 'a{1001}'}}]",
            "match[0].uri.regex",
            "is not RE2: invalid repetition size",
        ),
        ("match: [{uri: {regex: 'a('}}]", "match[0].uri.regex", "is not RE2: missing [)]: a"),
        ("match: [{uri: {exact: a, prefix: b}}]", "match[0].uri", "has 2 conditions; write one of"),
        (
            "match: [{headers: {uri: {exact: a}}}]",
            "match[0].headers.uri",
            "is not a header; Istio ign",
        ),
        ("match: [{sourceLabels: {a: b}}]", "match[0].sourceLabels", "need a sidecar at each clie"),
        (
            "match: [{ignoreUriCase: true}]",
            "match[0].ignoreUriCase",
            "to exact and prefix conditions",
        ),
        ("match: [{port: 0}]", "match[0].port", "cannot be 0; write a number of 1 to 65535"),
        (
            "mirror: {host: a}\nmirrors: [{destination: {host: b}}]",
            "mirrors",
            "combined with 'mirror'",
        ),
        ("mirrorPercentage: {value: 5}", "mirrorPercentage", "has no effect without 'mirror'"),
        ("mirrorPercentage: 5", "mirrorPercentage", r"must be a mapping \{value: 5\}"),
        (
            "mirror: {host: a}\nmirrorPercentage: {value: 101}",
            "mirrorPercentage.value",
            "cannot be 101.0; write a number of 0 to 100",
        ),
        ("fault: {}", "fault", "has neither 'delay' nor 'abort'; add one"),
        ("fault: {delay: {percent: 5, fixedDelay: 1s}}", "fault.delay.percent", "'percentage: {va"),
        ("fault: {abort: {percentage: {value: 1}}}", "fault.abort", "has none of httpStatus, grpc"),
        ("fault: {abort: {grpcStatus: DOWN}}", "fault.abort.grpcStatus", "is not a gRPC status"),
        ("retries: {perTryTimeout: 1s}", "retries", "has conditions and no attempts"),
        ("retries: {attempts: 2, retryOn: '5xx,foo'}", "retries.retryOn", "no condition 'foo'"),
        ("retries: {attempts: -1}", "retries.attempts", "cannot be -1; write a number of 0 to"),
        ("rewrite: {}", "rewrite", "rewrites nothing"),
        (
            "redirect: {uri: /x}",
            "redirect",
            "cannot be combined with 'route'; keep one of route, re",
        ),
        ("corsPolicy: {allowMethods: [FETCH]}", "corsPolicy.allowMethods[0]", "not an HTTP method"),
        ("headers: {request: {set: {':path': x}}}", "headers.request.set", "cannot change the hea"),
        (
            "headers: {response: {add: {a: '5%'}}}",
            "headers.response.add.a",
            "has a lone %; write it as %%",
        ),
        ("name: 5", "name", "must be text, not a number; quote it: '5'"),
        ("timeout: 1s\ntimeout: 2s", "timeout", "is given twice; keep one"),
    ],
)
def test_mistake_in_a_route_is_named_with_its_fix(body, path, words):
    found = problems(route(f"route: [{{destination: {{host: vision}}}}]\n{body}"))
    assert [where for _, where, _ in found] == [f"spec.http[0].{path}"]
    assert re.search(words, found[0][2]), found
    assert found[0][0] in (10, 11, 12)


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ("timeout: 1s", "", "has none of route, redirect, directResponse; add one"),
        ("route: []", "", "has none of route"),
        ("route: [{weight: 1}]", ".route[0].destination", "is missing; add it"),
        ("route: [{destination: {subset: a}}]", ".route[0].destination.host", "is missing"),
        ("route: [{destination: {host: ''}}]", ".route[0].destination.host", "is empty"),
        ("route: [{destination: {host: a_b}}]", ".route[0].destination.host", "is not a host"),
        ("route: [{destination: {host: '*'}}]", ".route[0].destination.host", "is one host"),
        (
            "route: [{destination: {host: a, subset: V_1}}]",
            ".route[0].destination.subset",
            "is not a subset name",
        ),
        (
            "route: [{destination: {host: a, port: 80}}]",
            ".route[0].destination.port",
            "must be a mapping {number: 80}",
        ),
        (
            "route: [{destination: {host: a}, weight: 0}, {destination: {host: b}}]",
            ".route",
            "all weights are 0",
        ),
        (
            "redirect: {uri: /a}\nfault: {abort: {httpStatus: 500}}",
            ".fault",
            "has no effect where no server is called",
        ),
    ],
)
def test_route_without_a_proper_destination_is_refused(body, path, words):
    found = problems(route(body))
    assert [where for _, where, _ in found] == [f"spec.http[0]{path}"]
    assert words in found[0][2]


@pytest.mark.parametrize(
    ("kind", "spec", "path", "words"),
    [
        (Kind.VIRTUAL_SERVICE, "http: [{route: [{destination: {host: a}}]}]", "hosts", "missing"),
        (Kind.VIRTUAL_SERVICE, "hosts: [a]", "http", "is empty; add a route"),
        (Kind.VIRTUAL_SERVICE, "hosts: [a]\ntcp: []\nhttp: &r [{redirect: {uri: /}}]", "tcp", "gR"),
        (Kind.VIRTUAL_SERVICE, "hosts: ['*']\nhttp: [{redirect: {uri: /}}]", "hosts[0]", "every c"),
        (
            Kind.VIRTUAL_SERVICE,
            "hosts: [a]\nexportTo: [b]\nhttp: [{redirect: {uri: /}}]",
            "exportTo",
            "names namespaces; write ['*']",
        ),
        (
            Kind.DESTINATION_RULE,
            "host: a\nsubsets: [{name: v1}, {name: v1}]",
            "subsets[1].name",
            "subset v1 is given twice",
        ),
        (
            Kind.DESTINATION_RULE,
            "host: a\ntrafficPolicy: {loadBalancer: {simple: LEAST_CONN}}",
            "trafficPolicy.loadBalancer.simple",
            "Istio deprecates it; write LEAST_REQUEST",
        ),
        (
            Kind.DESTINATION_RULE,
            "host: a\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBINN}}",
            "trafficPolicy.loadBalancer.simple",
            "did you mean 'ROUND_ROBIN'?",
        ),
        (
            Kind.DESTINATION_RULE,
            (
                "host: a\ntrafficPolicy: {loadBalancer: {consistentHash: "
                "{useSourceIp: true, maglev: {tableSize: 9}}}}"
            ),
            "trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
            "9 is not a prime",
        ),
        (
            Kind.DESTINATION_RULE,
            "host: a\ntrafficPolicy: {tls: {mode: MUTUAL, privateKey: k}}",
            "trafficPolicy.tls.clientCertificate",
            "is missing in mode MUTUAL",
        ),
        (
            Kind.DESTINATION_RULE,
            "host: a\ntrafficPolicy: {tls: {mode: ISTIO_MUTUAL}}",
            "trafficPolicy.tls.mode",
            "no Istio certificate authority; write MUTUAL",
        ),
        (
            Kind.DESTINATION_RULE,
            "host: a\ntrafficPolicy: {loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}}",
            "trafficPolicy.loadBalancer.warmup",
            "applies to ROUND_ROBIN and LEAST_REQUEST only",
        ),
        (
            Kind.DESTINATION_RULE,
            "host: a\ntrafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}",
            "trafficPolicy.outlierDetection.maxEjectionPercent",
            "write a number of 0 to 100",
        ),
        (
            Kind.GATEWAY,
            "servers: [{port: {number: 1, name: a, protocol: HTTPS}, hosts: ['*']}]",
            "servers[0].tls",
            "is missing for HTTPS",
        ),
        (
            Kind.GATEWAY,
            "servers: [{port: {number: 1, name: a, protocol: TCP}, hosts: ['*']}]",
            "servers[0].port.protocol",
            "TCP is not supported: only HTTP and gRPC are routed; write GRPC",
        ),
        (
            Kind.GATEWAY,
            "servers: [{port: {number: 1, name: a, protocol: GRPC}, hosts: [a b]}]",
            "servers[0].hosts[0]",
            "'a b' is not a domain",
        ),
        (
            Kind.SERVICE_ENTRY,
            "hosts: [a.b]\nresolution: STATIC\nports: [{number: 1, name: g}]",
            "",
            "has no endpoints and selects none",
        ),
        (
            Kind.SERVICE_ENTRY,
            (
                "hosts: [a.b]\nresolution: STATIC\nports: [{number: 1, name: g}]\n"
                "endpoints: [{address: 127.0.0.1, ports: {h: 2}}]"
            ),
            "endpoints[0].ports.h",
            "is not a port of the host; known are g",
        ),
        (
            Kind.SERVICE_ENTRY,
            (
                "hosts: [a.b]\nresolution: STATIC\nports: [{number: 1, name: g}]\n"
                "endpoints: [{address: local.host}]"
            ),
            "endpoints[0].address",
            "is not an IP address",
        ),
        (Kind.WORKLOAD_ENTRY, "address: 127.0.0.1:80", "address", "the port goes into 'ports'"),
    ],
)
def test_mistake_in_an_object_is_named_with_its_fix(kind, spec, path, words):
    found = problems(manifest(kind, spec))
    assert [where for _, where, _ in found] == [f"spec.{path}".rstrip(".")]
    assert words in found[0][2]


def test_all_mistakes_are_reported_at_once_with_their_lines():
    text = (
        route("route: [{destination: {host: a}, weight: -1}]\ntimeout: 5")
        + "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s}\n"
        + "---\nkind: [\n"
    )
    with pytest.raises(IstioObjectErrors) as caught:
        parse(text, "mesh.yaml")
    found = [(each.line, each.path) for each in caught.value.problems]
    assert found == [
        (10, "spec.http[0].route[0].weight"),
        (11, "spec.http[0].timeout"),
        (15, "kind"),
        (19, ""),
    ]
    assert str(caught.value).startswith(
        "mesh.yaml:10: VirtualService models/vision: spec.http[0].route[0].weight: cannot be -1; "
    )


@pytest.mark.parametrize(
    ("kind", "spec", "paths"),
    [
        (
            Kind.SERVICE_ENTRY,
            "hosts: [a.b]\nresolution: STATC\nports: [{number: 1, name: g}]",
            ["spec.resolution"],
        ),
        (
            Kind.VIRTUAL_SERVICE,
            "hosts: ['*x.com']\nhttp: [{redirect: {uri: /}}]",
            ["spec.hosts[0]"],
        ),
        (
            Kind.GATEWAY,
            (
                "servers:\n- port: {number: 1, name: a, protocol: HTTPS}\n  hosts: ['*']\n"
                "  tls: {mode: SIMPEL}\n  bind: 0.0.0.0"
            ),
            ["spec.servers[0].tls.mode", "spec.servers[0].bind"],
        ),
    ],
)
def test_default_of_a_field_that_cannot_be_read_is_not_refused(kind, spec, paths):
    assert [path for _, path, _ in problems(manifest(kind, spec))] == paths


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        (
            "loadBalancer: {simple: LEAST_CON}",
            "known are UNSPECIFIED, RANDOM, ROUND_ROBIN, LEAST_REQUEST",
        ),
        ("tls: {mode: FOO}", "known are DISABLE, SIMPLE, MUTUAL"),
        ("tls: {mode: ISTIO_MUTUALL}", "did you mean 'MUTUAL'?"),
        (
            "tunel: {}",
            (
                "known are loadBalancer, connectionPool, outlierDetection, tls, portLevelSettings, "
                "retryBudget"
            ),
        ),
    ],
)
def test_hint_names_only_what_the_compiler_supports(policy, hint):
    text = manifest(Kind.DESTINATION_RULE, f"host: a\ntrafficPolicy:\n  {policy}")
    ((_, _, told),) = problems(text)
    assert told.endswith(f"; {hint}")


@pytest.mark.parametrize(
    ("metadata", "path", "words"),
    [
        ("annotations: {tidegate.dev/stick: x}\n", "[tidegate.dev/stick]", "did you mean 'tidegat"),
        ("annotations: {tidegate.dev/sticky: cookie}\n", "[tidegate.dev/sticky]", "header:NAME"),
        ("annotations: {tidegate.dev/sticky: 5}\n", "[tidegate.dev/sticky]", "must be text"),
        (
            "annotations: {tidegate.dev/load-balancer: orca}\n",
            "[tidegate.dev/load-balancer]",
            "is not an annotation of Tidegate for this kind",
        ),
    ],
)
def test_wrong_annotation_is_refused(metadata, path, words):
    text = manifest(Kind.VIRTUAL_SERVICE, "hosts: [a]\nhttp: [{redirect: {uri: /}}]", metadata)
    ((line, where, told),) = problems(text)
    assert where == f"metadata.annotations{path}"
    assert words in told
    assert line == 6


def test_items_of_lists_are_read_and_other_kinds_are_skipped_and_listed():
    text = (
        "apiVersion: v1\nkind: List\nitems:\n"
        "- apiVersion: v1\n  kind: Service\n  metadata: {name: a, namespace: b}\n"
        "- apiVersion: networking.istio.io/v1\n  kind: WorkloadEntry\n  metadata: {name: w}\n"
        "  spec: {address: 127.0.0.1}\n"
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t}\n"
    )
    parsed = parse_part(text, "x.yaml")
    assert [str(each) for each in parsed.ignored] == [
        "x.yaml:4: Service b/a",
        "x.yaml:12: Telemetry t",
    ]
    assert [str(each.object.name) for each in parsed.objects] == ["WorkloadEntry default/w"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "is a list and not an object; write apiVersion, kind"),
        ("kind: VirtualService", "apiVersion: is missing"),
        ("apiVersion: networking.istio.io/v1\nkind: EnvoyFilter", "EnvoyFilter: kind: is not supp"),
        (
            (
                "apiVersion: networking.istio.io/v2\nkind: WorkloadEntry\n"
                "metadata: {name: a}\nspec: {address: 127.0.0.1}"
            ),
            "v2 is not an API version of Istio; known are networking.istio.io/v1, networking.is",
        ),
        ("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}", "spec: is miss"),
        ("apiVersion: networking.istio.io/v1\nkind: Gateway\nspec: {servers: []}", "metadata.name"),
    ],
)
def test_invalid_document_is_refused(text, words):
    with pytest.raises(IstioObjectErrors) as caught:
        parse(text, "x.yaml")
    assert words in str(caught.value)


def test_second_object_of_a_name_is_refused_with_the_place_of_the_first():
    text = manifest(Kind.WORKLOAD_ENTRY, "address: 127.0.0.1")
    with pytest.raises(IstioObjectErrors, match=r"x:9: Work.*: is already defined at x:1; keep"):
        parse(f"{text}---\n{text}", "x")


def test_merge_keys_and_anchors_are_read():
    text = """
        ports: [{number: 80, name: g, protocol: GRPC}]
        endpoints:
          - &first {address: 127.0.0.1, labels: {version: v1}}
          - {<<: *first, labels: {version: v2}}
    """
    objects = parse(
        manifest(Kind.SERVICE_ENTRY, HEAD[Kind.SERVICE_ENTRY] + textwrap.dedent(text)), "x"
    )
    (entry,) = objects.service_entries.values()
    assert [(each.address, each.labels["version"]) for each in entry.endpoints] == [
        ("127.0.0.1", "v1"),
        ("127.0.0.1", "v2"),
    ]


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("{<<: text, address: 127.0.0.1}", "'<<' merges something other than a mapping"),
        ("{<<: [text], address: 127.0.0.1}", "'<<' merges something other than a mapping"),
    ],
)
def test_invalid_merge_is_reported_at_its_line(endpoint, words):
    spec = f"{HEAD[Kind.SERVICE_ENTRY]}ports: [{{number: 80, name: g}}]\nendpoints: [{endpoint}]"
    good = manifest(Kind.WORKLOAD_ENTRY, "address: 127.0.0.1")
    parsed = parse_part(f"{manifest(Kind.SERVICE_ENTRY, spec)}---\n{good}", "x")
    assert [(each.line, each.problem[: len(words)]) for each in parsed.problems] == [(10, words)]
    assert [each.object.name.kind for each in parsed.objects] == [Kind.WORKLOAD_ENTRY]


def test_an_empty_list_is_a_missing_one():
    spec = "hosts: [a.b]\ngateways: []\nexportTo: []\nhttp: [{match: [], redirect: {uri: /}}]"
    service = parse(manifest(Kind.VIRTUAL_SERVICE, spec), "x")[VISION]
    assert service.gateways == ("mesh",)
    assert service.export_to == ("*",)
