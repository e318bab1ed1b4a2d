"""`tidegate mesh explain` with a request: the rule that takes it, and how arguments are read."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidegate.cli.mesh.commands import app
from tidegate.istio import EditError

ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME, namespace: models}
spec:
  hosts: [NAME.models.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 8500, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1}]
"""
ROUTES = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ingress, namespace: models}
spec:
  servers: [{port: {number: 80, name: g, protocol: GRPC}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: both, namespace: models}
spec:
  hosts: ["*"]
  gateways: [ingress]
  http:
    - match: [{uri: {prefix: /tidegate.vision.}, headers: {x-tier: {exact: beta}}}]
      route: [{destination: {host: vision}}]
      timeout: 3s
      retries: {attempts: 0}
    - match: [{uri: {regex: '/tidegate\\.vision\\..*'}}]
      route: [{destination: {host: vision}}]
      timeout: 2s
    - match: [{method: {exact: GET}, queryParams: {v: {exact: "2"}}}]
      directResponse: {status: 410}
    - match: [{uri: {prefix: /tidegate.llm.}}]
      route: [{destination: {host: llm}}]
"""
CLASSIFY = "tidegate.vision.v1.VisionService/Classify"


@pytest.fixture
def files(tmp_path):
    hosts, routes = tmp_path / "hosts.yaml", tmp_path / "routes.yaml"
    hosts.write_text("---\n".join(ENTRY.replace("NAME", name) for name in ("vision", "llm")))
    routes.write_text(ROUTES)
    return hosts, routes


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def lines(*arguments):
    done = run(*arguments)
    assert done.exit_code == 0, done.exception
    return [line.strip() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("request_", [CLASSIFY, f"/{CLASSIFY}"])
def test_first_rule_that_matches_takes_the_request(files, request_):
    told = lines(*files, request_)
    assert told[0] == f"call of /{CLASSIFY}"
    assert "1. rule (spec.http[0]): takes it if header x-tier is beta" in told
    assert "timeout: 3s, retries included (spec.http[0].timeout)" in told
    assert r"2. rule (spec.http[1]): takes it (path matches /tidegate\.vision\..*)" in told
    assert "timeout: 2s, retries included (spec.http[1].timeout)" in told
    assert "the 2 rules after it are not reached" in told
    assert not any(line.startswith("otherwise") for line in told)
    assert not any("llm" in line for line in told)


def test_rules_before_say_why_they_do_not_take_it(files):
    told = lines(*files, "/tidegate.llm.v1.LlmService/Chat")
    assert "1. rule (spec.http[0]): not taken: it asks that path starts with /tidegate.vision." in (
        told
    )
    assert "3. rule (spec.http[2]): not taken: it asks that query v is 2" in told
    assert "4. rule (spec.http[3]): takes it (path starts with /tidegate.llm.)" in told


def test_query_and_method_are_judged_where_they_are_known(files):
    assert "3. rule (spec.http[2]): takes it if method is GET" in lines(*files, "/models?v=2")
    told = lines(*files, "/models?v=1")
    assert "3. rule (spec.http[2]): not taken: it asks that query v is 2" in told
    assert told[-1] == "otherwise: 404 (a gRPC client sees UNIMPLEMENTED)"


def test_only_findings_about_the_request_follow(files):
    told = "\n".join(lines(*files, "/tidegate.llm.v1.LlmService/Chat"))
    assert "[default-retries] VirtualService models/both: spec.http[3]" in told
    assert "spec.http[1]" not in told.split("takes it", 1)[1]


def test_every_file_beside_a_file_is_read(files):
    assert any("llm.models.svc.cluster.local, which nothing" in line for line in lines(files[1]))
    assert not any("nothing defines" in line for line in lines(files[1], files[0]))


def test_host_and_files_and_request_go_together(files):
    told = lines("vision", CLASSIFY, *files)
    assert "2. rule (spec.http[1]): takes it (path matches /tidegate\\.vision\\..*)" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("/a", "/b"), "/a and /b are two requests"),
        (("vision", "nowhere"), "there is no file or folder nowhere"),
        (("/nowhere/mesh.yaml",), "there is no file or folder /nowhere/mesh.yaml"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(files, arguments, said):
    error = run(*arguments).exception
    assert isinstance(error, EditError)
    assert said in str(error)


def test_limit_is_refused_even_where_objects_cannot_be_read(tmp_path):
    bad = Path(tmp_path / "bad.yaml")
    bad.write_text("kind: VirtualService\n")
    done = CliRunner().invoke(app, ["lint", str(bad), "--p99", "vision=slow"])
    assert isinstance(done.exception, EditError)
