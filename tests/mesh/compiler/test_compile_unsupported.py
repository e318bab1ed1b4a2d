"""Fields and values that the parser accepts and the compiler refuses, with line, reason and fix."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.istio import IstioObjectErrors, IstioObjects, parse, parse_manifest, read_files
from tidegate.istio.destination_rule import DestinationRule
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler import CompileErrors, Compiler, MeshSettings, unsupported
from tidegate.mesh.compiler.unsupported import UNSUPPORTED_FIELDS
from tidegate.mesh.control.configuration.applied import AppliedConfiguration

SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vision, namespace: models}
spec:
  hosts: [vision]
  http:
  - match: [{uri: {prefix: /old}}]
    delegate:
      name: old
  - route: [{destination: {host: vision}, weight: 1}]
  tcp:
  - route: [{destination: {host: mongo}}]
"""
RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vision, namespace: models}
spec:
  host: '*.models.svc.cluster.local'
  trafficPolicy:
    tls: {mode: ISTIO_MUTUAL}
    portLevelSettings:
    - port: {number: 8500}
      loadBalancer: {simple: LEAST_CONN}
"""


def test_every_field_and_value_is_reported_with_its_line_in_the_file(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(f"{SERVICE}---\n{RULE}")
    with pytest.raises(IstioObjectErrors) as caught:
        read_files([path], unsupported)
    assert {each.source for each in caught.value.problems} == {str(path)}
    found = [(each.line, each.path, each.problem, each.fix) for each in caught.value.problems]
    assert found == [
        (
            *(8, "spec.http[0].delegate"),
            "is not supported: routes of several objects are not merged",
            "write them here",
        ),
        (
            *(11, "spec.tcp"),
            "is not supported: only HTTP and gRPC are routed",
            "call the server's port directly",
        ),
        (
            *(18, "spec.host"),
            "a wildcard is not supported: a rule is for one host",
            "write a rule for each host",
        ),
        (
            *(20, "spec.trafficPolicy.tls.mode"),
            "ISTIO_MUTUAL is not supported: there is no Istio certificate authority",
            "write MUTUAL and name files",
        ),
        (
            *(23, "spec.trafficPolicy.portLevelSettings[0].loadBalancer.simple"),
            "LEAST_CONN is not supported: Istio deprecates it",
            "write LEAST_REQUEST",
        ),
    ]


def test_a_file_on_a_laptop_with_such_a_field_is_broken_at_its_line():
    path = Path("mesh.yaml")
    texts = {path: SERVICE}
    found = AppliedConfiguration().differences(texts, texts)
    assert not found.config
    assert (
        "mesh.yaml:8: VirtualService models/vision: spec.http[0].delegate: " in found.broken[path]
    )
    assert "mesh.yaml:11: VirtualService models/vision: spec.tcp: " in found.broken[path]


def test_the_compiler_refuses_objects_that_no_reader_has_checked():
    compiler = Compiler(MeshSettings())
    with pytest.raises(CompileErrors) as caught:
        compiler.compile(parse(SERVICE, "mesh"), {})
    assert [(str(each.object), each.path, each.fix) for each in caught.value.errors] == [
        ("VirtualService models/vision", "spec.http[0].delegate", "write them here"),
        ("VirtualService models/vision", "spec.tcp", "call the server's port directly"),
    ]
    # The compiler does not remember a refused object as a compiled one.
    with pytest.raises(CompileErrors):
        compiler.compile(parse(SERVICE, "mesh"), {})


def test_field_of_a_newer_istio_is_read_from_an_api_server_and_not_compiled():
    service = parse_manifest(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "vision", "namespace": "models"},
            "spec": {
                "hosts": ["vision"],
                "http": [{"route": [{"destination": {"host": "vision", "zone": "a"}}]}],
            },
        }
    )
    with pytest.raises(CompileErrors, match=r"destination.zone: is not a field that Tidegate know"):
        Compiler(MeshSettings()).compile(IstioObjects.of([service]), {})


@given(st.data())
def test_no_opaque_field_is_ignored(data):
    kind = data.draw(st.sampled_from([VirtualService, DestinationRule]))
    name = data.draw(st.sampled_from(sorted(UNSUPPORTED_FIELDS[kind])))
    value = data.draw(st.none() | st.booleans() | st.lists(st.integers()) | st.text("ab :#{'"))
    text = (
        SERVICE.partition("  http:")[0] if kind is VirtualService else RULE.partition("  traf")[0]
    )
    text += f"  {name}: {json.dumps(value)}\n"
    found = [each.path for item in parse(text, "mesh").values() for each in unsupported(item)]
    assert f"spec.{name}" in found
