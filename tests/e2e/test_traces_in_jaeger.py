"""`tidegate up` with a real Jaeger as its collector: one trace for each call, from every program.

Client, gateway, Envoy, servers, controller and router send their spans there. The test asks Jaeger
when all have stopped, so that all spans have come.
"""

import json
import urllib.request

import pytest
from built_servers import built
from laptop_mesh import CAT, CLASSIFIER, MODELS, LaptopMesh
from running_jaeger import jaeger

from tidegate.cli.traces.jaeger_client import JaegerClient, TraceSearch
from tidegate.cli.traces.span_tree import rows

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not all((MODELS / CLASSIFIER / version).exists() for version in ("1-fp32", "1-int8")),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]

CALLS = 20
ROLLOUT = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: int8, namespace: models}
spec:
  host: vision
  baseline: v1
  candidate: v2
  strategy: {manual: {weights: [50, 60]}}
  objectives: [{signal: grpcFailures, margin: 3%}]
"""
CLASSIFY = "tidegate.vision.v1.VisionService/Classify"
STAGES = ("queue", "decode", "batch", "inference")


class Found:
    """What Jaeger has after the programs have stopped."""

    def __init__(self, url, analysed):
        self.client = JaegerClient(url)
        self.url = url
        self.analysed = analysed

    def traces(self, service, **search):
        lines = self.client.search(TraceSearch(service=service, limit=200, **search))
        return [self.client.read(self.client.trace_object(each.trace_id)) for each in lines]

    def dependencies(self):
        with urllib.request.urlopen(
            f"{self.url}/api/dependencies?endTs={2**42}&lookback={2**42}"
        ) as got:
            return {(each["parent"], each["child"]) for each in json.load(got)["data"]}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    built("jaeger")
    mesh = LaptopMesh(tmp_path_factory.mktemp("mesh"), gateway=True)
    rollout = mesh.folder / "rollout.yaml"
    rollout.write_text(ROLLOUT)
    with jaeger(tmp_path_factory.mktemp("jaeger")) as server:
        try:
            printed = mesh.tidegate("up", "--detach", "--otlp-endpoint", server.otlp_url)
            assert f"spans go to {server.otlp_url}" in printed
            classify(mesh.gateway_port)
            mesh.tidegate("shift", "vision", "v1=50", "v2=50")
            mesh.tidegate("rollout", "apply", "-f", str(rollout))
            mesh.tidegate("classify", "--repeat", str(CALLS), "--trace", server.otlp_url)
            mesh.tidegate("rollout", "promote", "int8")
            mesh.tidegate("rollout", "abort", "int8")
        finally:
            mesh.tidegate("down")
        report = mesh.tidegate(
            *("trace", "analyse", "--url", server.url, "--output", "json"), "--compare", "v1", "v2"
        )
        yield Found(server.url, json.loads(report))


def classify(port):
    """One call over HTTP through the gateway."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images:classify",
        data=CAT.read_bytes(),
        headers={"content-type": "image/jpeg"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def as_tree(trace):
    return [(len(row.last), row.span.service, row.span.operation) for row in rows(trace)]


def test_each_call_of_the_client_is_one_trace_from_the_client_to_the_engine(found):
    traces = found.traces("tidegate-cli")
    assert len(traces) == CALLS
    for trace in traces:
        tree = as_tree(trace)
        assert [row for row in tree if "egress" not in row[2]] == [
            (0, "tidegate-cli", CLASSIFY),
            (1, "ingress", f"/{CLASSIFY}"),
            (3, "tidegate-vision", CLASSIFY),
            *((4, "tidegate-vision", stage) for stage in STAGES),
        ]
        assert tree[2][:2] == (2, "ingress")
        # All programs run here, and say so; the command's own spans say it too.
        assert len({span.host for span in trace.spans} - {""}) == 1


def test_a_call_over_http_is_one_trace_with_the_gateway(found):
    # The supervisor's probes of the gateway are traces too.
    traces = found.traces("tidegate-gateway")
    (trace,) = [each for each in traces if each.spans[-1].operation == "inference"]
    services = [row[1] for row in as_tree(trace)]
    assert services[0] == "ingress"
    assert {"tidegate-gateway", "tidegate-vision"} < set(services)


def test_jaeger_draws_who_calls_whom(found):
    links = found.dependencies()
    assert {("tidegate-cli", "ingress"), ("ingress", "tidegate-vision")} <= links
    assert {("ingress", "tidegate-gateway"), ("tidegate-gateway", "ingress")} <= links


def test_the_controller_sends_its_spans_too(found):
    operations = {
        span.operation for trace in found.traces("tidegate-control") for span in trace.spans
    }
    assert "tidegate.mesh.v1.MeshService/Shift" in operations


def test_the_rollouts_decisions_are_one_trace_linked_to_calls(found):
    (run,) = [
        trace
        for trace in found.traces("tidegate-router")
        if any(span.operation == "rollout models/int8" for span in trace.spans)
    ]
    root, *events = (row.span for row in rows(run))
    assert root.operation == "rollout models/int8"
    names = [span.operation for span in events]
    # Both happen at the same moment.
    assert {"Started", "StageEntered"} == set(names[:2])
    assert names[-1] == "Aborted"
    assert names.count("StageEntered") == 2
    calls = {trace.trace_id for trace in found.traces("tidegate-cli")}
    linked = {link.trace_id for span in events for link in span.links}
    # The gateway's own questions to the servers are traced calls as well.
    assert linked & calls


def test_the_calls_are_analysed(found):
    (report,) = found.analysed["services"]
    assert report["service"] == "tidegate-vision"
    left_out = report["left_out"]
    assert [left_out[name] for name in ("incomplete", "cyclic", "skewed")] == [0, 0, 0]
    # The gateway now and then asks which models there are; no model answers that.
    versions = [each for each in report["versions"] if each["version"]]
    assert sum(each["calls"] for each in versions) == CALLS + 1
    assert {(each["version"], each["subset"]) for each in versions} == {
        ("1-fp32", "v1"),
        ("1-int8", "v2"),
    }
    for version in versions:
        kinds = version["kinds"]
        assert sum(each["mean_us"] for each in kinds.values()) == pytest.approx(
            version["time"]["mean_us"]
        )
        assert kinds["compute"]["mean_us"] > 0
