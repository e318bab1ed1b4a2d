"""What lint knows of programs: gRPC services of installed protos, and metrics of exporters."""

import subprocess
import sys
from pathlib import Path

import pytest
from grpc_tools import protoc

from tidegate.mesh.lint.knowledge import metric_names
from tidegate.mesh.lint.knowledge.grpc_services import (
    PathVerdict,
    is_grpc_path,
    is_known_service,
    judge_path,
)
from tidegate.mesh.lint.knowledge.metric_declarations import declared_samples, metrics_in_query
from tidegate.mesh.lint.knowledge.metric_names import MetricVerdict, judge_metric

ROOT = Path(__file__).parents[3]
PROTO = """\
syntax = "proto3";
package lintexample.search.v1;
message Empty {}
service SearchService { rpc Search(Empty) returns (Empty); }
"""


def test_services_of_tidegate_and_of_grpc_are_known():
    for name in (
        *("tidegate.vision.v1.VisionService", "tidegate.llm.v1.LlmService"),
        *("tidegate.rollout.v1.RolloutService", "inference.GRPCInferenceService"),
        *("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"),
        *("grpc.channelz.v1.Channelz", "envoy.service.accesslog.v3.AccessLogService"),
    ):
        assert is_known_service(name), name
    assert not is_known_service("tidegate.vision.v1.Vision")


def test_protos_of_an_installed_package_are_read_where_its_name_says(tmp_path, monkeypatch):
    path = "/lintexample.search.v1.SearchService/Search"
    assert judge_path(path) is PathVerdict.UNKNOWN_PACKAGE
    folder = tmp_path / "lintexample/search/v1"
    folder.mkdir(parents=True)
    (folder / "search.proto").write_text(PROTO)
    arguments = ["", f"-I{tmp_path}", f"--python_out={tmp_path}", str(folder / "search.proto")]
    assert protoc.main(arguments) == 0
    monkeypatch.syspath_prepend(tmp_path)
    judge_path.__globals__["_services"].cache_clear()
    assert judge_path(path) is PathVerdict.KNOWN
    assert judge_path(f"{path}es") is PathVerdict.NO_METHOD
    assert judge_path("/lintexample.search.v1.Search/*") is PathVerdict.NO_SERVICE


@pytest.mark.parametrize(
    ("path", "grpc"),
    [
        ("/tidegate.vision.v1.VisionService/Classify", True),
        ("/tidegate.vision.v1.VisionService/*", True),
        ("/tidegate.vision.v1.VisionService/{**}", True),
        ("/tidegate.vision.v1.VisionService", True),
        ("/tidegate.vision.*", True),
        ("/v1/models", False),
        ("/v1.2/models", False),
        ("/index.html", False),
        ("/*", False),
        ("*/Classify", False),
    ],
)
def test_paths_of_grpc_are_told_from_others(path, grpc):
    assert is_grpc_path(path) is grpc


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("up", {"up"}),
        ('sum by (pod) (rate(a_b_total{x="c(d)"}[1m] offset 5m))', {"a_b_total"}),
        ("a:b:c / on (pod) group_left (x) d", {"a:b:c", "d"}),
        ("sum(a) by (b, c) > bool 1e3 or vector(0)", {"a"}),
        ('{__name__="vllm:num_requests_running", pod=~".+"}', {"vllm:num_requests_running"}),
        ("quantile_over_time(0.9, x[5m:1m] @ end()) # not y", {"x"}),
        ("histogram_quantile(0.9, sum(rate(z_bucket[5m])) by (le)) unless inf", {"z_bucket"}),
    ],
)
def test_metrics_of_a_query_are_found(query, names):
    assert metrics_in_query(query) == names


def test_declarations_give_the_samples_that_prometheus_reads():
    source = """
Counter("a_total", "…"); Counter("b", "…"); GaugeMetricFamily("c", "…", labels=())
self._histogram_cls(name="vllm:d", documentation="…"); Info("e", "…"); log.info("f"); Counter(words)
"""
    assert set(declared_samples(source)) == {
        *("a_total", "b_total", "c", "vllm:d_bucket", "vllm:d_sum", "vllm:d_count", "e_info"),
    }
    assert set(declared_samples(source, "vllm:")) == {
        *("vllm:d_bucket", "vllm:d_sum", "vllm:d_count"),
    }


def test_metric_without_its_suffix_is_missing_and_the_nearest_is_named():
    judged = judge_metric("vllm:generation_tokens")
    assert judged.verdict is MetricVerdict.MISSING
    assert (judged.exporter, judged.nearest) == ("vLLM", "vllm:generation_tokens_total")


def test_metrics_of_another_vllm_are_read_from_its_code(tmp_path, monkeypatch):
    package = tmp_path / "vllm"
    (package / "v1").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('lint must not run vLLM')\n")
    (package / "_version.py").write_text("__version__ = version = '99.0'\n")
    (package / "v1/loggers.py").write_text('Gauge(name="vllm:num_requests_asleep")\n')
    monkeypatch.syspath_prepend(tmp_path)
    # Another test may have loaded the real one.
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    metric_names._vllm_samples.cache_clear()
    try:
        assert judge_metric("vllm:num_requests_asleep").verdict is MetricVerdict.KNOWN
        assert judge_metric("vllm:num_requests_waiting").verdict is MetricVerdict.MISSING
    finally:
        metric_names._vllm_samples.cache_clear()


def test_list_of_vllms_metrics_is_that_of_the_pinned_release():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/generate_known_metrics.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
