"""Lint accepts what works in Istio: egress tasks, merged gateways, hosts of plain HTTP."""

import pytest

from tidegate.istio import read_files
from tidegate.mesh.lint import Severity, check

ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cnn}
spec:
  hosts: [edition.cnn.com]
  resolution: DNS
  ports:
    - {number: 80, name: http, protocol: HTTP}
    - {number: 443, name: https, protocol: HTTPS}
  endpoints: [{address: edition.cnn.com}]
---
"""
ORIGINATE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cnn}
spec:
  host: edition.cnn.com
  trafficPolicy:
    portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]
---
"""
SUBSET = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cnn}
spec:
  host: edition.cnn.com
  subsets:
    - name: tls
      trafficPolicy:
        portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]
---
"""
IN_MESH = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cnn}
spec:
  hosts: [edition.cnn.com]
  http:
    - match: [{port: 80}]
      route: [{destination: {host: edition.cnn.com, port: {number: 443}}}]
"""
EGRESS = """\
apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress}
spec:
  selector: {istio: egressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [edition.cnn.com]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cnn}
spec:
  hosts: [edition.cnn.com]
  gateways: [egress, mesh]
  http:
    - match: [{gateways: [mesh], port: 80}]
      route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local}}]
    - match: [{gateways: [egress], port: 80}]
      route: [{destination: {host: edition.cnn.com, port: {number: 443}}}]
"""
GATEWAY = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: NAME}
spec:
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*.NAME.com"]}]
---
"""
SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: NAME}
spec:
  hosts: [HOSTS]
  gateways: [GATEWAYS]
  http:
    - match: [{uri: {prefix: PATH}}]
      route: [{destination: {host: edition.cnn.com, port: {number: 80}}}]
      timeout: TIMEOUT
---
"""


def checked(tmp_path, text):
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    return check(read_files([path]))


def errors(tmp_path, text):
    return [each.rule for each in checked(tmp_path, text) if each.severity is Severity.ERROR]


def service(name, path, *, hosts="a.a.com", gateways="a", timeout="1s"):
    words = {"NAME": name, "PATH": path, "HOSTS": hosts, "GATEWAYS": gateways, "TIMEOUT": timeout}
    text = SERVICE
    for old, new in words.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "text",
    [
        ENTRY.replace("protocol: HTTP}", "protocol: HTTP, targetPort: 443}")
        + ORIGINATE.replace("443", "80"),
        ENTRY + ORIGINATE + IN_MESH,
        ENTRY + SUBSET + IN_MESH.replace("com, port", "com, subset: tls, port"),
        ENTRY + ORIGINATE + EGRESS,
        ENTRY + EGRESS.replace("number: 443", "number: 80"),
    ],
    ids=["port-80", "port-443", "subset", "egress-gateway", "plain-egress-gateway"],
)
def test_egress_tasks_of_istio_have_no_errors(tmp_path, text):
    assert errors(tmp_path, text) == []


@pytest.mark.parametrize("text", [IN_MESH, EGRESS])
def test_tls_port_without_tls_is_an_error(tmp_path, text):
    assert errors(tmp_path, ENTRY + text) == ["plain-text-to-tls"]


def test_gateway_puts_rules_of_two_objects_together(tmp_path):
    gateway = GATEWAY.replace("NAME", "a")
    two = service("one", "/one") + service("two", "/two", timeout="2s")
    assert checked(tmp_path, ENTRY + gateway + two) == []
    # A catch-all comes last in any order.
    rest = service("one", "/") + service("two", "/two", timeout="2s")
    assert checked(tmp_path, ENTRY + gateway + rest) == []
    same = service("one", "/one") + service("two", "/one/more", timeout="2s")
    (found,) = checked(tmp_path, ENTRY + gateway + same)
    assert (found.rule, found.severity) == ("order-of-two", Severity.WARNING)


def test_mesh_does_not_put_rules_of_two_objects_together(tmp_path):
    one = service("one", "/one", hosts="edition.cnn.com", gateways="mesh")
    two = service("two", "/two", hosts="edition.cnn.com", gateways="mesh")
    assert errors(tmp_path, ENTRY + one + two) == ["two-virtual-services"]
    gateway = GATEWAY.replace("NAME", "a").replace("*.a.com", "edition.cnn.com")
    mixed = two.replace("[mesh]", "[a]")
    assert errors(tmp_path, ENTRY + gateway + one + mixed) == []


def test_hosts_may_be_at_one_of_several_gateways(tmp_path):
    gateways = GATEWAY.replace("NAME", "a") + GATEWAY.replace("NAME", "b")
    both = service("one", "/one", hosts="x.A.com, y.b.com", gateways="a, b")
    assert checked(tmp_path, ENTRY + gateways + both) == []
    with_mesh = service("one", "/one", hosts="x.a.com, edition.cnn.com", gateways="a, mesh")
    assert checked(tmp_path, ENTRY + GATEWAY.replace("NAME", "a") + with_mesh) == []


def test_gateway_that_takes_nothing_of_a_namespace_is_an_error(tmp_path):
    gateway = GATEWAY.replace("NAME", "a").replace('"*.a.com"', "other/a.a.com")
    assert errors(tmp_path, ENTRY + gateway + service("one", "/one")) == ["host-not-at-gateway"]


@pytest.mark.parametrize(
    ("protocol", "host", "said"),
    [("HTTP", "web", None), ("GRPC", "echo", "a stream"), ("GRPC", "llm", "LlmService/Generate")],
)
def test_default_retries_name_what_the_host_serves(tmp_path, protocol, host, said):
    text = f"{ENTRY}{GATEWAY.replace('NAME', 'a')}{service('one', '/')}"
    text = text.replace("edition.cnn.com", f"{host}.com")
    found = checked(
        tmp_path, text.replace("protocol: HTTP}\n    - {n", f"protocol: {protocol}}}\n    - {{n")
    )
    told = [each.traffic for each in found if each.rule == "default-retries"]
    assert len(told) == (said is not None)
    assert all(said in each for each in told)


def test_weights_of_a_repeated_destination_are_added_up(tmp_path):
    twice = "{destination: {host: edition.cnn.com, port: {number: 80}}, weight: WEIGHT}"
    text = service("one", "/one").replace(
        "[{destination: {host: edition.cnn.com, port: {number: 80}}}]",
        f"[{twice.replace('WEIGHT', '30')}, {twice.replace('WEIGHT', '70')}]",
    )
    (found,) = checked(tmp_path, ENTRY + GATEWAY.replace("NAME", "a") + text)
    assert (found.rule, found.path) == ("destination-twice", "spec.http[0].route[1].destination")
    assert "30 + 70 = 100" in found.traffic


def test_private_objects_of_two_namespaces_do_not_meet(tmp_path):
    private = ENTRY.replace("spec:\n", "spec:\n  exportTo: ['.']\n")
    here, there = (private.replace("{name: cnn}", f"{{name: cnn, namespace: {n}}}") for n in "ab")
    assert checked(tmp_path, here + there) == []
