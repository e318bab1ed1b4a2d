"""The versions of Istio's API, the case of letters in protocols, and edits that keep both."""

import dataclasses

import pytest

from tidegate.istio import (
    IstioObjectErrors,
    Kind,
    ObjectName,
    parse,
    plan_changes,
    read_files,
)
from tidegate.istio.gateway import GatewayProtocol
from tidegate.istio.service_entry import PortProtocol

VERSIONS = ("v1", "v1beta1", "v1alpha3")
SPECS = {
    Kind.VIRTUAL_SERVICE: "{hosts: [a.b], http: [{redirect: {uri: /}}]}",
    Kind.DESTINATION_RULE: "{host: a.b}",
    Kind.GATEWAY: "{servers: [{port: {number: 80, name: a, protocol: http2}, hosts: ['*']}]}",
    Kind.SERVICE_ENTRY: "{hosts: [a.b], resolution: DNS, ports: [{number: 80, name: a}]}",
    Kind.WORKLOAD_ENTRY: "{address: 10.0.0.1}",
}
OLD = """\
apiVersion: networking.istio.io/v1alpha3   # as it was in 2018
kind: VirtualService
metadata: {name: vision, namespace: models}
spec:
  hosts: [a.b]
  http:
    - route:
        - destination: {host: a.b, subset: v1}
          weight: 90
        - destination: {host: a.b, subset: v2}
          weight: 10
---
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: vision, namespace: models}
spec:
  hosts: [a.b]
  resolution: DNS
  ports:
    - {number: 80, name: web, protocol: gRPC}
"""


def document(kind, version):
    return (
        f"apiVersion: networking.istio.io/{version}\nkind: {kind.value}\n"
        f"metadata: {{name: a}}\nspec: {SPECS[kind]}\n"
    )


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_is_the_same_object_in_every_version(kind, version):
    name = ObjectName(kind, "default", "a")
    assert parse(document(kind, version), "x")[name] == parse(document(kind, "v1"), "x")[name]


@pytest.mark.parametrize("kind", Kind)
def test_an_object_in_two_versions_is_a_duplicate(kind, tmp_path):
    for version in ("v1", "v1alpha3"):
        (tmp_path / f"{version}.yaml").write_text(document(kind, version))
    with pytest.raises(IstioObjectErrors, match=r"v1alpha3.yaml:1: .* already defined at .*v1.y"):
        read_files([tmp_path])


@pytest.mark.parametrize("version", ["v2", "v1alpha1", "V1", "v1beta3"])
def test_unknown_version_is_refused_at_its_line(version):
    words = rf"x:1: WorkloadEntry: apiVersion: .*/{version} is not an API version of Istio"
    with pytest.raises(IstioObjectErrors, match=words):
        parse(document(Kind.WORKLOAD_ENTRY, version), "x")


def test_an_edit_leaves_version_and_protocol_as_they_are_written(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(OLD)
    loaded = read_files([path])
    service = loaded.objects[ObjectName(Kind.VIRTUAL_SERVICE, "models", "vision")]
    (rule,) = service.http
    route = tuple(dataclasses.replace(each, weight=50) for each in rule.route)
    changed = dataclasses.replace(service, http=(dataclasses.replace(rule, route=route),))
    (change,) = plan_changes(loaded, loaded.objects.with_(changed))
    assert change.after.decode() == OLD.replace("90", "50").replace("weight: 10", "weight: 50")


@pytest.mark.parametrize("written", ["http2", "Http2", "HTTP2", "hTtP2"])
def test_case_of_letters_in_a_protocol_is_ignored(written):
    gateway = document(Kind.GATEWAY, "v1").replace("http2", written)
    (port,) = [each.port for each in parse(gateway, "x").gateways.popitem()[1].servers]
    assert port.protocol is GatewayProtocol.HTTP2
    entry = document(Kind.SERVICE_ENTRY, "v1").replace(
        "name: a}]", f"name: a, protocol: {written}}}]"
    )
    (port,) = parse(entry, "x").service_entries.popitem()[1].ports
    assert port.protocol is PortProtocol.HTTP2


def test_an_empty_protocol_is_a_missing_one():
    entry = document(Kind.SERVICE_ENTRY, "v1").replace("name: a}]", "name: a, protocol: ''}]")
    (port,) = parse(entry, "x").service_entries.popitem()[1].ports
    assert port.protocol is None
