"""Policies of ports, which inherit nothing, and subsets that routes may name."""

from pathlib import Path

import pytest

from tidegate.istio import read_files
from tidegate.mesh.lint import check

TEXT = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: m}
spec:
  hosts: [a.m.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 8500, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: m}
spec:
  host: a
  POLICY
  subsets: [{name: v2}, {name: v1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: b, namespace: m}
spec: {host: a, subsets: [{name: v7}, {name: v1}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: m}
spec: {hosts: [a], http: [{route: [{destination: {host: a, subset: v9}}]}]}
"""
PORTS = "portLevelSettings: [{port: {number: 8500}, tls: {}}]"


def findings(tmp_path, policy=""):
    (tmp_path / "a.yaml").write_text(TEXT.replace("POLICY", policy))
    return check(read_files([Path(tmp_path)]))


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ("retryBudget: {percent: 25}", "does not have the retryBudget"),
        ("connectionPool: {http: {http2MaxRequests: 1}}", "defaults for connectionPool"),
        ("loadBalancer: {simple: RANDOM}", "defaults for loadBalancer"),
        ("outlierDetection: {interval: 1s}", "defaults for outlierDetection"),
    ],
)
def test_every_part_that_a_port_drops_is_named(tmp_path, part, word):
    found = findings(tmp_path, f"trafficPolicy: {{{part}, {PORTS}}}")
    dropped = [each for each in found if each.rule == "port-policy-inherits-nothing"]
    assert [each.path for each in dropped] == ["spec.trafficPolicy.portLevelSettings[0]"]
    assert word in str(dropped[0])
    alone = findings(tmp_path, f"trafficPolicy: {{{part}}}")
    assert not [each for each in alone if each.rule == "port-policy-inherits-nothing"]


def test_the_subsets_of_two_rules_are_named_once_each(tmp_path):
    (found,) = (each for each in findings(tmp_path) if each.rule == "missing-subset")
    rules = "DestinationRule m/a or DestinationRule m/b"
    assert found.fix == f"add it to {rules}, or name one of v1, v2, v7"
