"""A small `make bench-shifts`: every way to change traffic loses no request under load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("TIDEGATE_MODELS", ROOT / "models"))
VERSIONS = ("1-fp32", "1-int8", "1-bf16")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not all((MODELS / "efficientnet-lite0" / version).exists() for version in VERSIONS),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]


def test_changes_of_traffic_lose_no_request(tmp_path):
    output = tmp_path / "shifts.json"
    counts = {"shifts": 10, "splits": 8, "subsets": 2, "control": 1, "servers": 1}
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks" / "mesh" / "shifts.py"),
            *(f"--{name}={count}" for name, count in counts.items()),
            *("--rate=60", "--photographs=6", "--streams=0"),
            *(f"--models={MODELS}", f"--output={output}"),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    assert results["problems"] == []
    assert {each["name"]: each["changes"] for each in results["scenarios"]} == counts
    assert set(results["versions"]) == set(VERSIONS)
    # Calls of which a wrong route would have shown.
    assert results["totals"]["decided"] > 0
    assert results["totals"]["photographs"] > 0
    assert set(results["flags"]) == {"-"}
