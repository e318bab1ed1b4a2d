"""`tidegate mesh lint` and `tidegate mesh explain`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidegate.cli.mesh.commands import app
from tidegate.istio import EditError, IstioError
from tidegate.mesh.control.configuration.journal import Journal, ShiftedText
from tidegate.mesh.supervisor import StateDirectory

MESH = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vision, namespace: models}
spec:
  hosts: [vision.models.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 8500, name: grpc, protocol: GRPC}]
  endpoints:
    - {address: 127.0.0.1, ports: {grpc: 8501}, labels: {version: fp32}}
    - {address: 127.0.0.1, ports: {grpc: 8502}, labels: {version: int8}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vision, namespace: models}
spec:
  host: vision
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool: {http: {http2MaxRequests: 100}}
  subsets:
    - {name: v1, labels: {version: fp32}}
    - name: v2
      labels: {version: int8}
      trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-id}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ingress, namespace: models}
spec:
  servers: [{port: {number: 80, name: g, protocol: GRPC}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: vision
  namespace: models
  annotations: {tidegate.dev/sticky: "header:x-id"}
spec:
  hosts: ["*"]
  gateways: [ingress]
  http:
    - name: classify
      match: [{uri: {prefix: /tidegate.vision}, headers: {x-tier: {exact: beta}}}]
      route:
        - destination: {host: vision, subset: v2}
          weight: 1
        - destination: {host: vision, subset: v1}
          weight: 3
      timeout: 1500ms
      mirror: {host: vision, subset: v1}
      mirrorPercentage: {value: 2.5}
    - match: [{uri: {exact: /gone}}]
      directResponse: {status: 410}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
"""


@pytest.fixture
def mesh(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_warnings_are_shown_with_place_and_fix_and_do_not_fail(mesh):
    done = run("lint", mesh)
    assert done.exit_code == 0
    assert f"{mesh}:42: warning [default-retries] VirtualService models/vision: spec.http[0]" in (
        done.stdout
    )
    assert "fix: write 'retries: {attempts: 0}'" in done.stdout
    assert f"not looked at: {mesh}:55: ConfigMap notes" in done.stderr
    assert "0 errors, 1 warnings" in done.stderr


def test_errors_fail(mesh):
    mesh.write_text(MESH.replace("subset: v1}", "subset: v9}"))
    done = run("lint", mesh)
    assert done.exit_code == 1
    assert "error [missing-subset]" in done.stdout


def test_objects_that_cannot_be_read_are_findings_too(mesh):
    mesh.write_text(MESH.replace("timeout: 1500ms", "timeout: soon\n      delegate: {}"))
    done = run("lint", "--json", mesh)
    assert done.exit_code == 1
    found = json.loads(done.stdout)["findings"]
    assert [(each["rule"], each["path"], each["severity"]) for each in found] == [
        ("invalid", "spec.http[0].timeout", "error"),
        ("invalid", "spec.http[0].delegate", "error"),
    ]


def test_json_has_every_part_of_a_finding(mesh):
    document = json.loads(run("lint", "--json", mesh).stdout)
    (finding,) = document["findings"]
    assert finding.keys() == {
        *("rule", "severity", "object", "path", "source", "line", "traffic", "fix"),
    }
    assert document["ignored"] == [f"{mesh}:55: ConfigMap notes"]


WORKLOAD = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: vision, namespace: models}
spec:
  template:
    metadata: {labels: {app: vision, version: v1}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: GRACE
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: vision
          image: tidegate-vision
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
"""


def test_objects_of_kubernetes_are_linted_and_notes_do_not_fail(mesh):
    mesh.write_text(WORKLOAD.replace("GRACE", "60"))
    done = run("lint", mesh)
    assert done.exit_code == 0
    assert (
        f"{mesh}:13: note [image-without-digest] Deployment models/vision: spec.temp" in done.stdout
    )
    assert done.stderr == "0 errors, 0 warnings, 1 notes\n"
    (finding,) = json.loads(run("lint", "--json", mesh).stdout)["findings"]
    assert finding["severity"] == "note"


def test_kustomization_is_rendered(mesh):
    mesh.write_text(WORKLOAD.replace("GRACE", "60"))
    kustomization = mesh.with_name("kustomization.yaml")
    kustomization.write_text(
        "resources: [mesh.yaml]\n"
        "patches:\n"
        "  - target: {kind: Deployment}\n"
        "    patch: |\n"
        "      - op: replace\n"
        "        path: /spec/template/spec/terminationGracePeriodSeconds\n"
        "        value: 20\n"
    )
    done = run("lint", mesh.parent)
    assert done.exit_code == 1
    # Where the patched object is, and not in the rendered text.
    assert "mesh.yaml:9: error [grace-under-drain] Deployment models/vision" in done.stdout
    kustomization.write_text("resources: [nothing.yaml]\n")
    done = run("lint", mesh.parent)
    assert done.exit_code == 1
    assert f"{kustomization}:1: error [not-rendered] Kustomization {mesh.parent}" in done.stdout


def test_explain_says_nothing_of_kubernetes(mesh):
    mesh.write_text(f"{MESH}---\n{WORKLOAD}".replace("GRACE", "20"))
    assert "grace-under-drain" in run("lint", mesh).stdout
    assert "grace-under-drain" not in run("explain", mesh).stdout


def test_p99_is_taken_for_a_host_by_its_short_name(mesh):
    assert "timeout-under-p99" not in run("lint", mesh, "--p99", "vision=1.5s").stdout
    assert "timeout-under-p99" in run("lint", mesh, "--p99", "vision=1.6s").stdout
    assert isinstance(run("lint", mesh, "--p99", "vision=slow").exception, EditError)


def test_route_is_explained_with_where_each_value_comes_from(mesh):
    done = run("explain", mesh)
    assert done.exit_code == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    for line in (
        "VirtualService models/vision: requests for any host, at gateway models/ingress",
        (
            "1. rule 'classify' (spec.http[0]): path starts with /tidegate.vision and header "
            "x-tier is beta"
        ),
        "25 % to subset v2 of vision.models.svc.cluster.local (version=int8): 127.0.0.1:8502",
        "75 % to subset v1 of vision.models.svc.cluster.local (version=fp32): 127.0.0.1:8501",
        (
            "copies of 2.5 % to subset v1 of vision.models.svc.cluster.local (version=fp32): "
            "127.0.0.1:8501, answers unseen"
        ),
        "the same x-id goes the same way (annotation tidegate.dev/sticky)",
        (
            "retries: 2, on connect-failure, refused-stream, unavailable, cancelled, "
            "retriable-status-codes, perhaps at the same endpoint (Istio's default)"
        ),
        "timeout: 1.5s, retries included (spec.http[0].timeout)",
        (
            "v2: the same header x-id to the same endpoint "
            "(DestinationRule models/vision spec.subsets[1].trafficPolicy.loadBalancer)"
        ),
        (
            "v2: at most 100 requests at a time "
            "(DestinationRule models/vision spec.trafficPolicy.connectionPool)"
        ),
        (
            "v1: ROUND_ROBIN among its endpoints "
            "(DestinationRule models/vision spec.trafficPolicy.loadBalancer)"
        ),
        "v1: no endpoint is left out for failing (Istio's default)",
        "2. rule (spec.http[1]): path is /gone",
        "answered at once, no server is called: directResponse {'status': 410}",
        "otherwise: 404 (a gRPC client sees UNIMPLEMENTED)",
    ):
        assert line in lines, done.stdout
    assert "warning [default-retries]" in done.stdout


def test_host_is_explained_with_what_concerns_it(mesh):
    other = MESH.split("---\n")[0].replace("vision", "llm").replace("850", "860")
    mesh.write_text(f"{MESH}---\n{other}")
    done = run("explain", "llm", mesh)
    assert "host llm.models.svc.cluster.local" in done.stdout
    assert "no VirtualService sends requests to llm.models.svc.cluster.local" in done.stdout
    assert "vision" not in done.stdout
    assert isinstance(run("explain", "lm", mesh).exception, EditError)


def test_objects_of_the_project_are_taken_where_no_paths_are_given(mesh, monkeypatch):
    monkeypatch.chdir(mesh.parent)
    Path("tidegate.yaml").write_text(
        "mesh: {objects: [mesh.yaml], ingress: {vision: 80}}\n"
        "servers: {vision: {kind: vision, labels: {app: vision}}}\n"
    )
    assert "default-retries" in run("lint").stdout
    workloads = mesh.parent / ".tidegate" / "workloads"
    workloads.mkdir(parents=True)
    (workloads / "vision.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w}\n"
        "spec: {address: 127.0.0.1}\n"
    )
    assert "unselected-workload" in run("lint").stdout


def test_a_shift_that_the_files_do_not_show_is_told(mesh, monkeypatch):
    monkeypatch.chdir(mesh.parent)
    Path("tidegate.yaml").write_text(
        "mesh: {objects: [mesh.yaml], ingress: {vision: 80}}\nservers: {vision: {kind: vision}}\n"
    )
    assert run("explain", "vision").stderr == "0 errors, 1 warnings\n"
    with Journal(StateDirectory().mesh_state) as journal:
        journal.keep(Path("mesh.yaml"), ShiftedText(file=MESH, text=MESH))
    told = run("explain", "vision").stderr.splitlines()
    assert told[0] == "mesh.yaml is shifted: `tidegate mesh status` shows what is in effect"
    # Named files are explained as they are.
    assert "is shifted" not in run("explain", "vision", mesh).stderr


def test_project_without_a_mesh_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tidegate.yaml").write_text("servers: {vision: {kind: vision}}\n")
    assert isinstance(run("lint").exception, IstioError)
