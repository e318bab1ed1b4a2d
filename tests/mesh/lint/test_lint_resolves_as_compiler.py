"""Lint resolves hosts and policies that several objects define as the compiler does."""

import pytest
from mesh_objects import VISION, entry, gateway, rule, text, to, virtual

from tidegate.istio import read_files
from tidegate.mesh.lint import check, explain
from tidegate.mesh.lint.view import MeshView


@pytest.fixture
def load(tmp_path):
    def load(*objects):
        path = tmp_path / "mesh.yaml"
        path.write_text(text(*objects))
        return read_files([path])

    return load


def named(made, name):
    made["metadata"]["name"] = name
    return made


def test_a_host_has_the_endpoints_of_all_its_entries(load):
    loaded = load(
        named(entry({"v1": 9001}), "a"),
        named(entry({"v2": 9002}), "b"),
        gateway(8080),
        rule(subsets=("v1", "v2")),
        virtual({"route": [to("v1", 1), to("v2", 1)], "retries": {"attempts": 0}}),
    )
    assert check(loaded) == []
    view = MeshView(loaded.objects)
    assert [each.ports["main"] for each in view.endpoints(VISION, None)] == [9001, 9002]


def test_a_subsets_policy_comes_before_the_hosts_of_another_rule(load):
    random = {"loadBalancer": {"simple": "RANDOM"}}
    subset = {"name": "v1", "labels": {"version": "v1"}, "trafficPolicy": random}
    loaded = load(
        entry({"v1": 9001}),
        gateway(8080),
        named(rule({"loadBalancer": {"simple": "ROUND_ROBIN"}}, subsets=()), "a"),
        named(rule(subsets=(subset,)), "b"),
        virtual({"route": [to("v1")]}),
    )
    layers = MeshView(loaded.objects).policies(VISION, "v1", 8500)
    assert [(each.rule.name, each.path) for each in layers] == [
        ("b", "spec.subsets[0].trafficPolicy"),
        ("a", "spec.trafficPolicy"),
    ]
    told = "v1: RANDOM among its endpoints (DestinationRule models/b spec.subsets[0]"
    assert any(told in line for line in explain(MeshView(loaded.objects), VISION))


def test_only_the_rules_that_decide_have_a_policy(load):
    def connect_timeout(name, **spec):
        made = named(rule({"connectionPool": {"tcp": {"connectTimeout": "3s"}}}, subsets=()), name)
        made["spec"].update(spec)
        return made

    # Another exportTo begins a group of its own, and the last group decides.
    loaded = load(
        entry({"v1": 9001}),
        gateway(8080),
        connect_timeout("b"),
        connect_timeout("a", exportTo=["*"]),
        virtual({"route": [to()]}),
    )
    layers = MeshView(loaded.objects).policies(VISION, None, 8500)
    assert [each.rule.name for each in layers] == ["b"]
