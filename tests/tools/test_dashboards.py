"""The dashboards: generated as committed; their queries parse and name only what is exported."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import promql_parser
import pytest
import yaml
from exported_metrics import exported_metrics
from promql_labels import UnknownNameError, labels_of

from tidegate.cli.dashboard.answers import TimeRange, filled
from tidegate.cli.dashboard.definitions import read_dashboard, shipped_dashboards
from tidegate.mesh.envoy import bootstrap

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "mesh/istio/components/dashboards"
SPAN = TimeRange(0.0, 900.0)
LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")
# What other programs export: Prometheus' client, Envoy with the tag of Istio's bootstrap, vLLM.
PROCESS = {"process_cpu_seconds_total": (), "process_resident_memory_bytes": ()}
# NVIDIA's exporter is not here; its names are from memory, and no one has checked them.
GPU_ROW = "GPU (with NVIDIA's exporter)"
ENVOY_LABELS = ("cluster_name",)
VLLM_LABELS = ("model_name", "engine")


def vllm_series():
    """The series of the installed vLLM, read from its source: to import it takes half a minute."""
    folder = Path(importlib.util.find_spec("vllm").origin).parent / "v1/metrics"
    text = "".join(each.read_text() for each in folder.glob("*.py"))
    found = set(re.findall(r'name="(vllm:[a-z_]+)"', text))
    assert len(found) > 30
    ends = ("", "_total", "_bucket", "_sum", "_count")
    return {f"{name}{end}" for name in found for end in ends}


@pytest.fixture(scope="module")
def known():
    """The labels of every series that something of ours exports, or exports for us."""
    found = {
        series: (*each.labels, "le") if series.endswith("_bucket") else each.labels
        for each in exported_metrics().values()
        for series in each.series
    }
    envoy = (each.strip(".").replace(".", "_") for each in bootstrap._STAT_SUFFIXES)
    return (
        found
        | PROCESS
        | {f"envoy_cluster_{name}": ENVOY_LABELS for name in envoy}
        | dict.fromkeys(vllm_series(), (*VLLM_LABELS, "le"))
    )


def queries():
    """Every query of every dashboard, with the place that it has there."""
    for name, path in shipped_dashboards().items():
        dashboard = read_dashboard(path)
        row = ""
        for panel in dashboard.panels:
            row = panel.title if panel.type == "row" else row
            for at, each in enumerate(panel.queries):
                yield f"{name}: {row}: {panel.title}: {at}", row, each.expression, each.legend
        for each in dashboard.marks:
            yield f"{name}: {each.name}", "", each.expression, each.text


def plain(expression):
    return filled(expression, {"namespace": ".*", "service": "(a|b)"}, SPAN)


def test_the_committed_files_are_those_that_the_code_makes():
    command = [sys.executable, "tools/generate_dashboards.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(shipped_dashboards()) == {"cnn", "controller", "llm", "rollouts", "services"}


def test_each_dashboard_is_in_a_config_map_that_grafana_finds():
    component = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = {file for each in component["configMapGenerator"] for file in each["files"]}
    assert files == {each.name for each in FOLDER.glob("*.json")}
    assert component["generatorOptions"]["labels"] == {"grafana_dashboard": "1"}


def test_every_query_parses_and_names_only_metrics_and_labels_that_exist(known):
    for place, row, expression, legend in queries():
        if row == GPU_ROW:
            promql_parser.parse(plain(expression))
            continue
        try:
            labels = labels_of(plain(expression), known)
        except UnknownNameError as error:
            raise AssertionError(f"{place}: {error}") from error
        assert set(LABEL.findall(legend)) <= labels, place


def test_the_labels_of_variables_exist(known):
    asked = re.compile(r"label_values\((.*), (\w+)\)")
    for path in shipped_dashboards().values():
        for each in json.loads(path.read_text())["templating"]["list"]:
            if each["type"] == "query":
                series, label = asked.fullmatch(each["query"]).groups()
                assert label in labels_of(plain(series), known), path


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(istio_request_total[1m])", "no metric istio_request_total"),
        ('istio_requests_total{code="1"}', "no label code"),
        ("sum by (version_of) (istio_requests_total)", "no label version_of"),
        (
            "tidegate_rollout_phase * on (name, host) group_left (strategy) tidegate_rollout_info",
            "no label host",
        ),
        ("histogram_quantile(0.5, sum(istio_request_bytes_bucket))", "no label le"),
        ('label_replace(istio_requests_total, "a", "$1", "b", "(.*)")', "no label b"),
    ],
)
def test_a_name_that_does_not_exist_is_found(known, query, problem):
    with pytest.raises(UnknownNameError, match=problem):
        labels_of(query, known)


def test_every_panel_says_what_it_means_and_has_a_place_of_its_own():
    for path in shipped_dashboards().values():
        taken = set()
        panels = [each for each in read_dashboard(path).panels if each.type != "row"]
        for panel in panels:
            assert len(panel.description) > 20, panel.title
            x, y, width, height = panel.place
            cells = {(x + i, y + j) for i in range(width) for j in range(height)}
            assert not cells & taken, (path.name, panel.title)
            assert x + width <= 24
            taken |= cells
        assert len({each.id for each in panels}) == len(panels)
