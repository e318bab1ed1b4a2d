"""Each rule of lint: a sound mesh has no findings, and each mistake in it has exactly its own."""

import dataclasses
import datetime as dt
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.istio import read_files
from tidegate.mesh.lint import Severity, check
from tidegate.mesh.lint.checking import ALL_RULES, INVALID

ROOT = Path(__file__).parents[3]
HOST = "vision.models.svc.cluster.local"
SOUND = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vision, namespace: models}
spec:
  hosts: [vision.models.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {number: 8500, name: grpc, protocol: GRPC}
  endpoints:
    - {address: 127.0.0.1, labels: {version: fp32}}
    - {address: 127.0.0.2, labels: {version: fp32}}
    - {address: 127.0.0.3, labels: {version: int8}}
    - {address: 127.0.0.4, labels: {version: int8}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vision, namespace: models}
spec:
  host: vision
  trafficPolicy:
    outlierDetection: {maxEjectionPercent: 50}
  subsets:
    - name: v1
      labels: {version: fp32}
    - name: v2
      labels: {version: int8}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ingress, namespace: models}
spec:
  servers:
    - {port: {number: 8080, name: grpc, protocol: GRPC}, hosts: ["*.example.com"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vision, namespace: models}
spec:
  hosts: [vision.example.com]
  gateways: [ingress]
  http:
    - match: [{uri: {prefix: /tidegate.vision}, headers: {x-tier: {exact: beta}}}]
      route:
        - destination: {host: vision, subset: v2}
      retries: {attempts: 0}
    - route:
        - destination: {host: vision, subset: v2}
          weight: 10
        - destination: {host: vision, subset: v1}
          weight: 90
      retries: {attempts: 0}
      timeout: 2s
"""
VIRTUAL_SERVICE = SOUND.split("---\n")[3]
ENTRY = SOUND.split("---\n")[0]
RULE = SOUND.split("---\n")[1]
IN_MESH = {
    "gateways: [ingress]": "gateways: [ingress, mesh]",
    "hosts: [vision.ex": f"hosts: [{HOST}, vision.ex",
}

BETA = "match: [{uri: {prefix: /tidegate.vision}, headers: {x-tier: {exact: beta}}}]"
P99 = "models, annotations: {tidegate.dev/p99: TIME}}\nspec:\n  hosts: [vision.m"
ONE_TRY = "retries: {attempts: 1, perTryTimeout: 1s"
HASH = "{useSourceIp: true}"
POLICY = "  trafficPolicy:\n"
KUBERNETES = "apiVersion: v1\nkind: Service\nmetadata: {name: vision, namespace: models}\n"
STICKY = "models, annotations: {tidegate.dev/sticky: 'header:x-id'}}\nspec:\n  hosts: [vision.ex"
SELECTING = """---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selecting, namespace: default}
spec:
  hosts: [selecting.models.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  workloadSelector: {labels: {app: nobody}}
"""
WORKLOAD = """---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w}
spec: {address: 127.0.0.1, labels: {a: b}}
"""
ANOTHER = VIRTUAL_SERVICE.replace("{name: vision", "{name: other")
IN_MESH_TOO = ANOTHER.replace("gateways: [ingress]", "gateways: [mesh]")
OTHER_GATEWAY = (
    SOUND.split("---\n")[2].replace("{name: ingress", "{name: other").replace("*.ex", "*.other")
)
HTTPS = (
    "{port: {number: 8080, name: https, protocol: HTTPS}, hosts: [a.example.com], "
    "tls: {mode: SIMPLE, serverCertificate: /c.pem, privateKey: /k.pem}}"
)
COPY = "{destination: {host: vision, subset: v1}}"
DETECTION = "outlierDetection: {maxEjectionPercent: 50}"
GRPC_ROUTE = """---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: r}
"""

# Rule, path of its finding, and replacements in the sound mesh.
MISTAKES = [
    (
        "unknown-host",
        "spec.http[1].route[1].destination.host",
        {"{host: vision, subset: v1}": "{host: vison}"},
    ),
    (
        "unknown-host",
        "spec.http[1].mirrors[0].destination.host",
        {"      timeout: 2s": "      mirrors: [{destination: {host: llm}}]"},
    ),
    ("missing-subset", "spec.http[1].route[1].destination.subset", {"subset: v1}": "subset: v3}"}),
    (
        "weight-on-empty-subset",
        "spec.http[1].route[1].destination",
        {"labels: {version: fp32}\n    - name": "labels: {version: bf16}\n    - name"},
    ),
    (
        "empty-subset",
        "spec.subsets[0].labels",
        {"labels: {version: fp32}\n    - name": "labels: {version: bf16}\n    - name"},
    ),
    ("overlapping-subsets", "spec.subsets[1].labels", {"      labels: {version: int8}\n": ""}),
    (
        "endpoint-without-subset",
        "",
        {"127.0.0.4, labels: {version: int8}": "127.0.0.4, labels: {version: x}"},
    ),
    ("undeclared-protocol", "spec.ports[0].protocol", {", protocol: GRPC}\n  end": "}\n  end"}),
    (
        "undeclared-protocol",
        "spec.ports[0].protocol",
        {"protocol: GRPC}\n  end": "protocol: TCP}\n  end"},
    ),
    (
        "unknown-port",
        "spec.http[1].route[1].destination.port",
        {"subset: v1}": "subset: v1, port: {number: 85}}"},
    ),
    (
        "unknown-port",
        "spec.http[0].route[0].destination",
        {"  endpoints:": "    - {number: 9, name: m, protocol: HTTP}\n  endpoints:"},
    ),
    (
        "unreachable-route",
        "spec.http[1]",
        {f"    - {BETA}\n      route": "    - route"},
    ),
    ("unknown-gateway", "spec.gateways[0]", {"gateways: [ingress]": "gateways: [ingres]"}),
    ("gateway-without-routes", "", {"gateways: [ingress]": "gateways: [ingres]"}),
    (
        "host-not-at-gateway",
        "spec.hosts[0]",
        {"hosts: [vision.example.com]": "hosts: [vision.example.org]"},
    ),
    (
        "host-not-at-gateway",
        "spec.hosts[0]",
        {'hosts: ["*.example.com"]': 'hosts: ["other/*.example.com", models/a.test]'},
    ),
    ("unknown-virtual-host", "spec.hosts[0]", {"gateways: [ingress]": "gateways: [ingress, mesh]"}),
    (
        "two-virtual-services",
        "spec.hosts[0]",
        {
            "gateways: [ingress]": "gateways: [mesh]",
            "      timeout: 2s\n": "---\n" + IN_MESH_TOO,
        },
    ),
    (
        "order-of-two",
        "spec.http[0]",
        {
            "      timeout: 2s\n": "---\n"
            + ANOTHER.replace("subset: v2}\n      ret", "subset: v1}\n      ret")
        },
    ),
    (
        "idle-gateway",
        "spec.gateways[1]",
        {
            "gateways: [ingress]": "gateways: [ingress, other]",
            "      timeout: 2s\n": "---\n" + OTHER_GATEWAY,
        },
    ),
    (
        "two-servers",
        "spec.servers[0].hosts[1]",
        {'hosts: ["*.example.com"]': 'hosts: ["*.example.com", "*.EXAMPLE.com"]'},
    ),
    (
        "not-compiled",
        "spec.servers[1].port",
        {'hosts: ["*.example.com"]}': 'hosts: ["*.example.com"]}\n    - ' + HTTPS},
    ),
    (
        "destination-twice",
        "spec.http[1].route[1].destination",
        {"subset: v1}\n          weight: 90": "subset: v2}\n          weight: 90"},
    ),
    (
        "destination-twice",
        "spec.http[1].mirrors[1].destination",
        {"      timeout: 2s": f"      mirrors: [{COPY}, {COPY}]"},
    ),
    (
        "endpoint-twice",
        "spec.endpoints[3]",
        {"127.0.0.4, labels: {version: int8}": "127.0.0.3, labels: {version: int8}"},
    ),
    (
        "ineffective-match",
        "spec.http[0].match[2]",
        {
            BETA: f"{BETA[:-1]}, {BETA[8:-1].replace('prefix: /', 'exact: /a/')}, "
            f"{BETA[8:].replace('{prefix', '{exact')}",
        },
    ),
    (
        "match-for-nobody",
        "spec.http[0].match[0].uri",
        {"{prefix: /tidegate.vision}": "{prefix: tidegate}"},
    ),
    (
        "match-for-nobody",
        "spec.http[0].match[0].port",
        {BETA: BETA.replace("[{", "[{port: 8500, ")},
    ),
    (
        "match-for-nobody",
        "spec.http[0].match[0].gateways",
        {BETA: BETA.replace("[{", "[{gateways: [mesh], ")},
    ),
    (
        "match-for-nobody",
        "spec.http[0].match[0].withoutHeaders[x-tier]",
        {BETA: BETA.replace("[{", "[{withoutHeaders: {x-tier: {}}, ")},
    ),
    (
        "policy-for-unknown-port",
        "spec.trafficPolicy.portLevelSettings[0].port",
        {POLICY: f"{POLICY}    portLevelSettings: [{{port: {{number: 9}}, {DETECTION}}}]\n"},
    ),
    (
        "plain-text-to-tls",
        "spec.ports[0].protocol",
        {"protocol: GRPC}\n  end": "protocol: HTTPS}\n  end"},
    ),
    (
        "retried-posts",
        "spec.http[1].retries.retryOn",
        {
            "protocol: GRPC}\n  end": "protocol: HTTP}\n  end",
            "weight: 90\n      retries: {attempts: 0}": (
                "weight: 90\n      retries: {attempts: 2, retryOn: 'connect-failure,5xx'}"
            ),
        },
    ),
    (
        "default-retries",
        "spec.http[1].retries",
        {"weight: 90\n      retries: {attempts: 0}": "weight: 90\n      retries: {attempts: 3}"},
    ),
    (
        "host-defined-twice",
        "spec.hosts[0]",
        {"      timeout: 2s\n": "---\n" + ENTRY.replace("namespace: models", "namespace: others")},
    ),
    (
        "two-rules",
        "spec.host",
        {"      timeout: 2s\n": "---\n" + RULE.replace("{name: vision", "{name: other")},
    ),
    ("rule-for-unknown-host", "spec.host", {"  host: vision\n": "  host: vison\n"}),
    ("default-retries", "spec.http[1]", {"weight: 90\n      retries: {attempts: 0}": "weight: 90"}),
    ("default-retries", "spec.http[0]", {"v2}\n      retries: {attempts: 0}": "v2}"}),
    (
        "timeout-under-p99",
        "spec.http[1].timeout",
        {"models}\nspec:\n  hosts: [vision.m": P99.replace("TIME", "2100ms")},
    ),
    (
        "timeout-under-p99",
        "spec.http[0].retries.perTryTimeout",
        {
            "v2}\n      retries: {attempts: 0": f"v2}}\n      {ONE_TRY}",
            "models}\nspec:\n  hosts: [vision.m": P99.replace("TIME", "1500ms"),
        },
    ),
    (
        "fault-for-nobody",
        "spec.http[1].fault.delay",
        {"      timeout: 2s": "      fault: {delay: {fixedDelay: 1s}}"},
    ),
    (
        "hash-without-sticky",
        "spec.http[1].route",
        {POLICY: f"{POLICY}    loadBalancer: {{consistentHash: {HASH}}}\n"},
    ),
    (
        "sticky-on-kubernetes",
        "spec.http[1].route",
        {ENTRY: KUBERNETES, "models}\nspec:\n  hosts: [vision.ex": STICKY},
    ),
    (
        "dead-subset-policy",
        "spec.subsets[2].trafficPolicy",
        {"int8}\n---": "int8}\n    - {name: v3, trafficPolicy: {tls: {mode: DISABLE}}}\n---"},
    ),
    (
        "ejects-nobody",
        "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
        {"maxEjectionPercent: 50": "maxEjectionPercent: 49"},
    ),
    (
        "ejects-nobody",
        "spec.trafficPolicy.outlierDetection",
        {"{maxEjectionPercent: 50}": "{interval: 1s}"},
    ),
    (
        "outlier-detection-of-one",
        "spec.trafficPolicy.outlierDetection",
        {"    - {address: 127.0.0.4, labels: {version: int8}}\n": ""},
    ),
    (
        "port-policy-inherits-nothing",
        "spec.trafficPolicy.portLevelSettings[0]",
        {POLICY: f"{POLICY}    portLevelSettings: [{{port: {{number: 8500}}, tls: {{}}}}]\n"},
    ),
    (
        "unselected-workload",
        "spec.labels",
        {"      timeout: 2s\n": WORKLOAD},
    ),
    (
        "selects-no-workload",
        "spec.workloadSelector.labels",
        {"      timeout: 2s\n": WORKLOAD + SELECTING},
    ),
    (
        "gateway-api-route",
        "",
        {"      timeout: 2s\n": GRPC_ROUTE},
    ),
    (
        "least-request-for-grpc-clients",
        "spec.trafficPolicy.loadBalancer.simple",
        {
            **IN_MESH,
            "  trafficPolicy:\n": "  trafficPolicy:\n    loadBalancer: {simple: LEAST_REQUEST}\n",
        },
    ),
    ("ignored-by-grpc-clients", "spec.trafficPolicy.outlierDetection", IN_MESH),
    (
        "ignored-by-grpc-clients",
        "spec.http[1].mirrors",
        {**IN_MESH, "      timeout: 2s": "      mirrors: [{destination: {host: vision}}]"},
    ),
    (
        "ignored-by-grpc-clients",
        "spec.http[1].headers",
        {**IN_MESH, "      timeout: 2s": "      headers: {request: {set: {a: b}}}"},
    ),
]


def checked(tmp_path, text, **limits):
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    return check(read_files([path]), **limits)


def changed(replacements):
    text = SOUND
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def test_sound_mesh_has_no_findings(tmp_path):
    assert checked(tmp_path, SOUND) == []


@pytest.mark.parametrize(
    ("name", "path", "replacements"),
    MISTAKES,
    ids=[f"{index}-{name}" for index, (name, _, _) in enumerate(MISTAKES)],
)
def test_mistake_is_found_at_its_place_with_effect_and_fix(tmp_path, name, path, replacements):
    text = changed(replacements)
    found = [each for each in checked(tmp_path, text) if (each.rule, each.path) == (name, path)]
    assert len(found) == 1, checked(tmp_path, text)
    (report,) = found
    assert report.traffic
    assert report.fix
    assert 1 <= report.line <= len(text.splitlines())


def test_every_rule_is_tried_here():
    assert {name for name, _, _ in MISTAKES} == {each.name for each in ALL_RULES} - {INVALID.name}


def test_line_is_that_of_the_field(tmp_path):
    (report,) = checked(tmp_path, changed({"{maxEjectionPercent: 50}": "{maxEjectionPercent: 25}"}))
    assert (
        report.line
        == SOUND.splitlines().index("    outlierDetection: {maxEjectionPercent: 50}") + 1
    )
    assert report.object == "DestinationRule models/vision"
    assert report.severity is Severity.WARNING
    assert "write maxEjectionPercent 50 or more" in report.fix


def test_always_eject_one_host_lets_a_small_share_pass(tmp_path):
    text = changed(
        {
            "{maxEjectionPercent: 50}": "{maxEjectionPercent: 10}",
            "kind: DestinationRule\nmetadata: {name: vision, namespace: models}": (
                "kind: DestinationRule\nmetadata: {name: vision, namespace: models, annotations: "
                "{tidegate.dev/always-eject-one-host: 'true'}}"
            ),
        }
    )
    assert checked(tmp_path, text) == []


def test_sticky_annotation_goes_with_a_hash(tmp_path):
    text = changed(
        {
            "  trafficPolicy:\n": (
                "  trafficPolicy:\n    loadBalancer: {consistentHash: {httpHeaderName: x-id}}\n"
            ),
            "kind: VirtualService\nmetadata: {name: vision, namespace: models}": (
                "kind: VirtualService\nmetadata: {name: vision, namespace: models, annotations: "
                "{tidegate.dev/sticky: 'header:x-id'}}"
            ),
        }
    )
    assert checked(tmp_path, text) == []


def test_routes_that_the_router_keeps_sticky_on_a_cluster_are_sound(tmp_path):
    destination = (
        "      route:\n        - destination: {host: vision, subset: v2}\n          weight"
    )
    by_hand = destination.replace("      route", "    - route", 1)
    kept = f"    - name: tidegate-sticky.models.vision@s3\n{destination}"
    sticky = {ENTRY: KUBERNETES, "models}\nspec:\n  hosts: [vision.ex": STICKY}
    (report,) = rules_of(tmp_path, changed(sticky), "sticky-on-kubernetes")
    assert "'write: own' or 'write: delegate'" in report.fix
    assert rules_of(tmp_path, changed(sticky | {by_hand: kept}), "sticky-on-kubernetes") == []


def rules_of(tmp_path, text, name):
    return [each for each in checked(tmp_path, text) if each.rule == name]


def test_p99_that_is_given_counts_before_the_annotation(tmp_path):
    (report,) = checked(tmp_path, SOUND, p99={HOST: dt.timedelta(seconds=2.5)})
    assert (report.rule, report.path) == ("timeout-under-p99", "spec.http[1].timeout")
    assert checked(tmp_path, SOUND, p99={HOST: dt.timedelta(seconds=2)}) == []


def test_nothing_is_said_of_endpoints_that_are_made_while_servers_run(tmp_path):
    endpoints = SOUND[SOUND.index("  endpoints:") : SOUND.index("---\n")]
    text = changed({endpoints: "  workloadSelector: {labels: {app: vision}}\n"})
    assert checked(tmp_path, text) == []
    workload = (
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        "metadata: {name: w, namespace: models}\n"
        "spec: {address: 127.0.0.1, labels: {app: vision, version: int8}}\n"
    )
    rules = {each.rule for each in checked(tmp_path, text + workload)}
    assert rules == {"empty-subset", "weight-on-empty-subset", "outlier-detection-of-one"}


def test_service_of_kubernetes_defines_a_host(tmp_path):
    text = changed({ENTRY: KUBERNETES})
    assert checked(tmp_path, text) == []


@pytest.mark.parametrize(
    ("earlier", "later", "covered"),
    [
        ("{uri: {prefix: /a}}", "{uri: {prefix: /ab}}", True),
        ("{uri: {prefix: /a}}", "{uri: {exact: /ab}}", True),
        ("{uri: {prefix: /ab}}", "{uri: {prefix: /a}}", False),
        ("{uri: {prefix: /a}}", "{uri: {regex: /a.*}}", False),
        ("{uri: {regex: .*}}", "{uri: {exact: /a}}", True),
        ("{headers: {x: {}}}", "{headers: {x: {exact: a}}}", True),
        ("{uri: {regex: '/a/(?i)b'}}", "{uri: {exact: /a/B}}", True),
        ("{uri: {regex: '/a/(?i)b'}}", "{uri: {exact: /A/b}}", False),
        ("{uri: {regex: '/a'}}", "{uri: {exact: /a/b}}", False),
        ("{headers: {x: {}}}", "{headers: {z: {exact: a}}}", False),
        ("{uri: {prefix: /}, headers: {x: {}}}", "{uri: {prefix: /}}", False),
        ("{uri: {prefix: /a}}", "{uri: {prefix: /a}, headers: {x: {}}}", True),
        ("{withoutHeaders: {x: {}}}", "{uri: {prefix: /a}}", False),
        ("{port: 80}", "{uri: {prefix: /a}}", False),
        ("{gateways: [ingress]}", "{uri: {prefix: /a}}", False),
        ("{uri: {prefix: /A}, ignoreUriCase: true}", "{uri: {prefix: /a}}", False),
        ("{}", "{uri: {prefix: /a}}", True),
    ],
)
def test_rule_is_unreachable_only_where_that_is_sure(tmp_path, earlier, later, covered):
    rules = "".join(
        f"    - {{match: [{match}], route: [{{destination: {{host: vision, subset: {subset}}}}}], "
        "retries: {attempts: 0}}\n"
        for match, subset in ((earlier, "v1"), (later, "v2"))
    )
    text = SOUND[: SOUND.index("    - match:")] + rules
    found = [each.path for each in checked(tmp_path, text) if each.rule == "unreachable-route"]
    assert found == (["spec.http[1]"] if covered else [])


def test_objects_that_tidegate_comes_with_have_no_errors():
    loaded = read_files(
        [ROOT / "mesh/istio/base/traffic", ROOT / "mesh" / "local" / "services.yaml"]
    )
    assert [dataclasses.asdict(each) for each in check(loaded)] == []


def test_objects_that_tidegate_comes_with_are_read():
    kinds = {name.kind.value for name in read_files([ROOT / "mesh/istio/base/traffic"]).objects}
    assert kinds == {"DestinationRule", "Gateway", "VirtualService"}


def test_tables_in_the_documentation_are_those_of_the_code():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_mesh_tables.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
