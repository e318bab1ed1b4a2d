"""The docs name every metric, and no other. Prometheus' linter has no objection to any of them."""

import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
from exported_metrics import exported_metrics

DOCS = Path(__file__).resolve().parent.parent / "docs"
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
    found = exported_metrics()
    return {name: each.labels for name, each in found.items() if NAME.match(name)}


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


def test_promtool_has_no_objection_to_any_metric():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool; `apt-get install prometheus` brings it")
    text = "".join(
        each.exposition()
        for name, each in exported_metrics().items()
        # The names are Istio's, whose time is in milliseconds.
        if name != "istio_request_duration_milliseconds"
    )
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
