"""The documentation names every metric, and no other."""

import importlib
import re
from itertools import product
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PORTIONS = [ROOT / "services", ROOT / "mesh", ROOT / "router"]
MAKES_METRICS = re.compile(r"^from prometheus_client\b", re.MULTILINE)
NAME = re.compile(r"\b(?:tidegate|grpc_server)_[a-z_]*(?:\{[a-z_]+(?:,[a-z_]+)+\}[a-z_]*)*")
SUFFIXES = ("_bucket", "_count", "_sum")


def names_in(text):
    """Returns the names of metrics in a text; ``{a,b}`` in a table stands for several names."""
    found = set()
    for name in NAME.findall(re.sub(r"\b(?:tidegate|grpc_server)_\w*\*", "", text)):
        parts = [part.split(",") for part in re.split(r"[{}]", name)]
        found.update(map("".join, product(*parts)))
    return found


@pytest.fixture(scope="module")
def metrics():
    """The labels of every Tidegate metric, by its name."""
    for portion in PORTIONS:
        for path in sorted(portion.rglob("*.py")):
            if MAKES_METRICS.search(path.read_text()):
                importlib.import_module(".".join(path.relative_to(portion).with_suffix("").parts))
    llm = importlib.import_module("tidegate.serving.llm.telemetry")
    istio = importlib.import_module("tidegate.mesh.telemetry.istio_metrics")
    of_a_controller = CollectorRegistry()
    istio.IstioMetrics(lambda *_: None, istio.IstioWorkload(), of_a_controller)
    found = {}
    for registry, added in (
        (REGISTRY, ()),
        (of_a_controller, ()),
        (llm._METRICS, ("model", "model_version")),
    ):
        for collector in registry._collector_to_names:
            for metric in collector.describe() if hasattr(collector, "describe") else ():
                name = metric.name + ("_total" if metric.type == "counter" else "")
                found[name] = (*added, *collector._labelnames)
    rollouts = importlib.import_module("tidegate.router.metrics")
    for metric in rollouts.RolloutCollector(()).collect():
        found[metric.name] = metric._labelnames
    found["tidegate_tls_certificate_expiry_timestamp_seconds"] = ()
    return {name: each for name, each in found.items() if NAME.match(name)}


def test_every_metric_is_documented(metrics):
    named = set().union(*(names_in(path.read_text()) for path in DOCS.rglob("*.md")))
    assert set(metrics) - named == set()


def test_every_documented_metric_exists(metrics):
    named = set().union(*(names_in(path.read_text()) for path in DOCS.rglob("*.md")))
    whole = {name.removesuffix(next(filter(name.endswith, SUFFIXES), "")) for name in named}
    assert whole - set(metrics) == set()


def test_the_table_of_the_servers_names_their_labels(metrics):
    seen, base = set(), ()
    for line in (DOCS / "operating.md").read_text().splitlines():
        if not line.startswith("| ") or not (names := names_in(line.split("|")[1])):
            continue
        cell = line.split("|")[2]
        labels = tuple(re.findall(r"`(\w+)`", cell))
        for name in names:
            if "the same" not in cell:
                assert metrics[name] == labels, name
            elif labels:
                assert metrics[name][:-1] == base, name
                assert metrics[name][-1] in labels, name
            else:
                assert metrics[name] == base, name
        seen |= names
        base = base if "the same" in cell else labels
    servers = ("grpc_server", "tidegate_llm", "tidegate_vision", "tidegate_tls")
    assert {name for name in metrics if name.startswith(servers)} <= seen
