"""``tidegate rollout simulate`` and ``lint``, which need no router."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rollout_examples import CANARY

_SIMULATE = ("--candidate", "failures=5%", "--runs", "5", "--seed", "3")


def test_a_simulation_is_a_table_that_its_seed_repeats(tidegate, write):
    done = tidegate("rollout", "simulate", write(CANARY), *_SIMULATE)
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[:5] == [
        "requests      100/s to vision",
        "baseline v1   failures=0.1%, latency=20ms, predictionDrift=0%",
        "candidate v2  failures=5%; else as the baseline",
        "runs          5 of vision-int8",
        "",
    ]
    assert lines[6].split()[:3] == ["aborted", "5", "100.0%"]
    assert lines[7] == "10% BY: a tenth of these runs had ended by then"
    assert "extra bad requests of users" in done.out
    assert "--seed 3 repeats these runs" in done.out
    assert tidegate("rollout", "simulate", write(CANARY), *_SIMULATE).out == done.out


def test_a_simulation_can_be_json_and_a_plot(tidegate, write, tmp_path):
    done = tidegate(
        *("rollout", "simulate", write(CANARY), *_SIMULATE, "--json", "--plot", "plot.svg")
    )
    found = json.loads(done.out)
    assert (found["runs"], found["seed"], found["ends"]["aborted"]) == (5, 3, 5)
    assert ET.parse(tmp_path / "plot.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    tidegate("rollout", "simulate", write(CANARY), *_SIMULATE, "--plot", "plot.html")
    assert (tmp_path / "plot.html").read_text().startswith("<!doctype html>")


def test_a_candidate_can_turn_bad_with_time(tidegate, write):
    done = tidegate(
        *("rollout", "simulate", write(CANARY), "--runs", "3", "--json"),
        *("--candidate-after", "10m:failures=50%", "--approve-after", "1h"),
    )
    found = json.loads(done.out)
    assert found["ends"]["aborted"] == 3
    assert found["time_s"]["aborted"]["p10"] > 600


def test_several_candidates_behave_each_in_its_way(tidegate, write):
    text = CANARY.replace("candidate: v2", "candidates: [v2, v3]").replace(
        CANARY[CANARY.index("    canary:") : CANARY.index("  objectives:")],
        "    ab: {untilEvidence: true, then: winner}\n",
    )
    done = tidegate(
        *("rollout", "simulate", write(text), "--runs", "2", "--json"),
        *("--candidate", "v3:failures=20%"),
    )
    found = json.loads(done.out)
    assert "v3" in found["reasons"]["aborted"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "fast"), "--rate fast: write it like 100/s"),
        (("--rate", "0/s"), "write it like 100/s"),
        (("--candidate", "failures"), "'failures' is not a fact"),
        (("--candidate", "v9:failures=1%"), "the candidates are v2"),
        (("--candidate-after", "failures=1%"), "write it like 10m:failures=5%"),
        (("--candidate-after", "soon:failures=1%"), "soon is not a duration"),
        (("--baseline", "latency=3"), "write a duration like 30ms"),
        (("--plot", "a.png"), "write a file .svg or .html"),
        (("--name", "other"), "has vision-int8"),
        (("--runs", "0"), "Invalid value for '--runs'"),
        (("--approve-after", "later"), "later is not a duration"),
    ],
)
def test_wrong_options_of_a_simulation_are_named(tidegate, write, arguments, words):
    done = tidegate("rollout", "simulate", write(CANARY), *arguments)
    assert done.code == 2
    assert words in " ".join(done.err.replace("│", " ").split())


def test_a_file_with_several_rollouts_needs_a_name(tidegate, write):
    other = CANARY.replace("vision-int8", "other")
    path = write(f"{CANARY}---\n{other}")
    done = tidegate("rollout", "simulate", path, *_SIMULATE)
    assert done.code == 2
    assert "choose one with --name" in done.err
    assert tidegate("rollout", "simulate", path, *_SIMULATE, "--name", "other").code == 0


_OBJECTS = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vision, namespace: models}
spec:
  hosts: [vision.models.svc.cluster.local]
  ports: [{number: 8500, name: grpc, protocol: GRPC}]
  resolution: STATIC
  workloadSelector: {labels: {app: vision}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vision, namespace: models}
spec:
  host: vision.models.svc.cluster.local
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
"""


def test_lint_looks_hosts_up_in_the_istio_objects(tidegate, write):
    objects = write(_OBJECTS, "objects.yaml")
    good = tidegate("rollout", "lint", write(CANARY), "--objects", objects)
    assert (good.code, good.out, good.err) == (0, "", "0 errors, 0 warnings\n")
    bad = write(CANARY.replace("candidate: v2", "candidate: v3"))
    done = tidegate("rollout", "lint", bad, "--objects", objects)
    assert done.code == 1
    assert f"{bad}:7: error [subset-unknown] spec.candidate" in done.out
    assert "fix: add it to the DestinationRule" in done.out


def test_lint_tells_faults_and_findings_alike(tidegate, write):
    path = write(CANARY.replace("falseAbort: 1%", "falseAbort: 150%"))
    done = tidegate("rollout", "lint", path, "--json")
    assert done.code == 1
    assert json.loads(done.out) == {
        "source": str(path),
        "line": 21,
        "path": "spec.decide.falseAbort",
        "severity": "error",
        "rule": "invalid",
        "text": "150% is out of range",
        "fix": "write a share above 0% and up to 50%",
    }


def test_lint_without_files_needs_a_mesh(tidegate):
    done = tidegate("rollout", "lint")
    assert done.code == 2
    assert "name files" in done.err


def test_lint_of_a_folder_leaves_other_json_out_and_needs_a_file(tidegate, write, tmp_path):
    write('{"$schema": "https://json-schema.org/draft/2020-12/schema"}', "rollout.schema.json")
    done = tidegate("rollout", "lint", tmp_path)
    assert done.code == 2
    assert "there is no .yaml or .yml file" in " ".join(done.err.replace("│", " ").split())
    write(CANARY)
    done = tidegate("rollout", "lint", tmp_path)
    assert (done.code, done.err) == (0, "0 errors, 0 warnings\n")
    # A file that is named itself is read, whatever its name is.
    assert tidegate("rollout", "lint", tmp_path / "rollout.schema.json").code == 1


def test_one_error_is_counted_as_one(tidegate, write):
    path = write(CANARY.replace("falseAbort: 1%", "falseAbort: 150%"))
    assert tidegate("rollout", "lint", path).err == "1 error, 0 warnings\n"


def test_the_examples_fit_the_objects_of_the_repository(tidegate, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[4])
    done = tidegate("rollout", "lint", "docs/rollout-examples", "--json")
    assert done.code == 0, done
    assert {json.loads(line)["rule"] for line in done.out.splitlines()} == {"host-shared"}


def test_apply_refuses_what_can_never_work(tidegate, write):
    path = write(CANARY.replace("{for: 2m}", "{for: 2h}"))
    done = tidegate("rollout", "apply", "-f", path, "--address", "127.0.0.1:1")
    assert done.code == 1
    assert "[pauses-too-long] spec.decide.within" in done.err
