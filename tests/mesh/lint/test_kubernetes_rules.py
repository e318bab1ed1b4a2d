"""Each rule about Kubernetes: a sound cluster has no findings, and each mistake in it its own."""

from pathlib import Path

import pytest
import yaml

from tidegate.mesh.lint import Severity, read_sources
from tidegate.mesh.lint.checking import ALL_KUBERNETES_RULES, KUSTOMIZATION_BELOW, NOT_RENDERED

HERE = Path(__file__).parent
SOUND = (HERE / "sound_cluster.yaml").read_text()
MISTAKES = yaml.safe_load((HERE / "kubernetes_mistakes.yaml").read_text())
CONTAINER = "spec.template.spec.containers[0]"

# What follows from a mistake is a finding of its own.
TOGETHER = {
    "weight-on-subset-without-pods": {"subset-without-pods"},
    "subset-without-pods": {"weight-on-subset-without-pods"},
    "service-pins-version": {"subset-without-pods", "weight-on-subset-without-pods"},
    "no-app-or-version-label": {"subset-without-pods", "weight-on-subset-without-pods"},
}


def linted(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return read_sources([path]).check()


def changed(replacements, more=""):
    text = SOUND
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    return text + (f"---\n{more}" if more else "")


def test_sound_cluster_has_no_findings(tmp_path):
    assert linted(tmp_path, SOUND) == []


@pytest.mark.parametrize(
    "mistake", MISTAKES, ids=[f"{index}-{each['rule']}" for index, each in enumerate(MISTAKES)]
)
def test_mistake_is_found_at_its_place_and_under_no_other_name(tmp_path, mistake):
    replaced = {each["old"]: each["new"] for each in mistake.get("replace", ())}
    text = changed(replaced, mistake.get("add", ""))
    reports = linted(tmp_path, text)
    asked = (mistake["rule"], mistake["object"], mistake["path"])
    found = [each for each in reports if (each.rule, each.object, each.path) == asked]
    assert len(found) == 1, reports
    (report,) = found
    assert report.traffic
    assert report.fix
    assert 1 <= report.line <= len(text.splitlines())
    others = {each.rule for each in reports} - {report.rule}
    assert others <= TOGETHER.get(report.rule, set())


def test_every_rule_is_tried_here():
    of_folders = {NOT_RENDERED.name, KUSTOMIZATION_BELOW.name}
    names = {each.name for each in ALL_KUBERNETES_RULES}
    assert {each["rule"] for each in MISTAKES} == names - of_folders


def test_every_rule_says_why():
    assert all(each.why for each in ALL_KUBERNETES_RULES)


def test_line_is_that_of_the_field(tmp_path):
    text = changed({"targetPort: grpc": "targetPort: rpc"})
    (report,) = linted(tmp_path, text)
    assert "targetPort: rpc" in text.splitlines()[report.line - 1]
    assert report.severity is Severity.ERROR
    assert report.traffic == (
        "no container of Deployment models/vision-v1 declares port rpc: its Pods are no endpoints"
        " of this port"
    )
    assert report.fix == "write one that it declares (grpc 8500, http-metrics 9090), or declare it"


@pytest.mark.parametrize(
    ("replacements", "path", "problem", "fix"),
    [
        (
            {"minReplicas: 2": "minReplicas: two"},
            *("spec.minReplicas", "is not integer", "write a whole number, without quotes"),
        ),
        (
            {"{port: 8500, service: startup}": "{port: grpc, service: startup}"},
            f"{CONTAINER}.startupProbe.grpc.port",
            *("is not integer", "write a whole number, without quotes"),
        ),
        (
            {"app.kubernetes.io/version: v1}": "app.kubernetes.io/version: 1}"},
            "spec.template.metadata.labels[app.kubernetes.io/version]",
            *("is not string", "write it in quotes"),
        ),
        (
            {"spec: {mtls: {mode: STRICT}}": "spec: {mtls: {mode: Strict}}"},
            *("spec.mtls.mode", "is not 'UNSET', 'DISABLE', 'PERMISSIVE' or 'STRICT'"),
            "write 'UNSET', 'DISABLE', 'PERMISSIVE' or 'STRICT'",
        ),
        ({"  maxReplicas: 8\n": ""}, "spec.maxReplicas", "is missing", "add it"),
        (
            {"randomSamplingPercentage: 1}": "randomSamplingPercentage: 101}"},
            "spec.tracing[0].randomSamplingPercentage",
            *("is not less than or equal to 100", "write less than or equal to 100"),
        ),
    ],
)
def test_object_that_cannot_be_read_names_field_problem_and_fix(
    tmp_path, replacements, path, problem, fix
):
    (report,) = linted(tmp_path, changed(replacements))
    assert (report.rule, report.path, report.traffic, report.fix) == ("invalid", path, problem, fix)
    assert report.severity is Severity.ERROR


def test_object_that_two_documents_define_is_told(tmp_path):
    account = next(each for each in SOUND.split("---\n") if "kind: ServiceAccount" in each)
    (report,) = linted(tmp_path, f"{SOUND}---\n{account}")
    assert (report.rule, report.path) == ("invalid", "metadata.name")
    assert "is already defined" in report.traffic


@pytest.mark.parametrize(
    ("replacements", "severity"),
    [
        ({"targetPort: grpc": "targetPort: rpc"}, Severity.ERROR),
        # It may be open though no container declares it.
        ({"targetPort: 9090": "targetPort: 9091"}, Severity.WARNING),
        ({"[{port: grpc}, ": "[{port: rpc}, "}, Severity.ERROR),
        ({"[{port: grpc}, ": "[{port: 8501}, "}, Severity.WARNING),
        ({"port: 8500, service: readiness": "port: 8501, service: readiness"}, Severity.WARNING),
        ({"port: http-metrics, path: /healthz": "port: http, path: /healthz"}, Severity.ERROR),
    ],
)
def test_number_of_a_port_is_less_certain_than_a_name(tmp_path, replacements, severity):
    (report,) = linted(tmp_path, changed(replacements))
    assert report.severity is severity
