"""Rollouts that take minutes: drift of labels, truncated answers, late failures.

Each test prints what it measured; `pytest -rP` shows it.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from chat_load import ChatLoad
from laptop_mesh import CLASSIFIER, LANGUAGE_MODEL, MODELS, server
from permuted_model import permuted_classifier
from rollout_mesh import FaultyMesh
from steady_load import SteadyLoad, photographs

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        not (MODELS / CLASSIFIER / "1-int8").exists(),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]

# Little enough for two servers on one core, so that none of them refuses a call.
RATE = 20.0
OBJECTIVES = [
    {"signal": "grpcFailures", "tolerate": "1.2x", "margin": "0.5%"},
    {"signal": "latency", "above": "1s", "tolerate": "5%"},
]
STEPS = [
    {"weight": 1},
    {"pause": {"for": "20s"}},
    {"weight": 10},
    {"pause": {"for": "20s"}},
    {"weight": 50},
]
RAMP = {"ramp": {"harmBudget": 20, "maxWeight": 50}}


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@contextmanager
def running(mesh: FaultyMesh) -> Iterator[FaultyMesh]:
    try:
        mesh.tidegate("up", "--detach")
        yield mesh
    finally:
        mesh.tidegate("down")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[FaultyMesh]:
    with running(FaultyMesh(tmp_path_factory.mktemp("mesh"))) as mesh:
        yield mesh


@pytest.fixture(autouse=True)
def _traffic_as_the_files_say(request) -> Iterator[None]:
    yield
    if "mesh" in request.fixturenames:
        mesh = request.getfixturevalue("mesh")
        mesh.set_fault()
        mesh.start_over()


def test_the_int8_canary_goes_from_one_to_a_hundred_per_cent(mesh):
    with SteadyLoad(mesh.vision_port, RATE, photographs()) as load:
        mesh.apply("int8", strategy={"canary": {"steps": STEPS}}, objectives=OBJECTIVES)
        seen = mesh.follow("int8", "promoted", "aborted", "paused", seconds=1200)
    assert seen.phase == "promoted", seen.status.message
    assert load.failures == 0, load.errors
    tell(f"promoted after {load.codes.total()} calls, {load.versions}")


@pytest.mark.parametrize("name", ["unavailable", "delay"])
def test_a_bad_version_costs_less_than_the_harm_budget(mesh, name):
    fault = {"unavailable": 5.0} if name == "unavailable" else {"delay": "100ms"}
    objectives = [
        {"signal": "grpcFailures", "tolerate": "1.2x", "margin": "0.5%"},
        {"signal": "latency", "quantile": "50%", "tolerate": "1.5x"},
    ]
    mesh.set_fault(**fault)
    try:
        with SteadyLoad(mesh.vision_port, RATE, photographs()) as load:
            mesh.apply(name, strategy={"canary": RAMP}, objectives=objectives)
            seen = mesh.follow(name, "promoted", "aborted", "paused", seconds=1200)
    finally:
        mesh.set_fault()
    assert seen.phase == "aborted", seen.status.message
    assert all("fault filter abort" in error for error in load.errors), load.errors
    assert load.failures <= 20
    tell(f"{seen.messages('Aborting')[0]}; {load.failures} failed of {load.codes.total()}")


def test_a_version_with_permuted_labels_is_found(tmp_path):
    repository = tmp_path / "models"
    model = permuted_classifier(repository)
    objectives = [
        {"signal": "grpcFailures", "tolerate": "1.2x", "margin": "0.5%"},
        {"signal": "predictionDrift", "tolerate": "5%"},
    ]
    with (
        running(FaultyMesh(tmp_path, model, repository)) as mesh,
        SteadyLoad(mesh.vision_port, RATE, photographs()) as load,
    ):
        mesh.apply("permuted", strategy={"canary": {"steps": STEPS}}, objectives=objectives)
        seen = mesh.follow("permuted", "promoted", "aborted", "paused", seconds=600)
    assert seen.phase == "aborted", seen.status.message
    assert "predictionDrift" in seen.messages("Aborting")[0]
    assert load.failures == 0, load.errors
    tell(f"{seen.messages('Aborting')[0]}; after {load.codes.total()} calls")


def test_a_version_that_is_fine_for_ten_minutes_and_then_fails_is_found(mesh):
    strategy = {"canary": {"steps": [{"weight": 25}, {"pause": {"untilApproved": True}}]}}
    with SteadyLoad(mesh.vision_port, RATE, photographs()) as load:
        mesh.apply("late", strategy=strategy, objectives=OBJECTIVES)
        mesh.follow("late", "WaitingForApproval")
        with pytest.raises(AssertionError, match="late is progressing"):
            mesh.follow("late", "aborted", "paused", seconds=600)
        assert load.failures == 0, load.errors
        mesh.set_fault(unavailable=5)
        failing_since = time.monotonic()
        try:
            seen = mesh.follow("late", "aborted", "paused", seconds=900)
        finally:
            mesh.set_fault()
        took_s = time.monotonic() - failing_since
    assert seen.phase == "aborted", seen.status.message
    assert all("fault filter abort" in error for error in load.errors), load.errors
    tell(f"found after {took_s:.0f} s and {load.failures} failed calls: {seen.status.message}")


@pytest.mark.llm
@pytest.mark.skipif(
    not (MODELS / LANGUAGE_MODEL).exists(),
    reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
)
def test_a_language_model_that_truncates_its_answers_is_found(tmp_path):
    objectives = [
        {"signal": "grpcFailures", "tolerate": "1.2x", "margin": "1%"},
        {"signal": "truncatedAnswers", "tolerate": "10%"},
        {"signal": "finishReasonDrift", "tolerate": "10%"},
    ]
    with running(_two_language_models(tmp_path)) as mesh, ChatLoad(mesh.llm_port) as load:
        mesh.apply(
            "truncating",
            host="llm",
            strategy={"canary": {"steps": [{"weight": 50}]}},
            objectives=objectives,
        )
        seen = mesh.follow("truncating", "promoted", "aborted", "paused", seconds=900)
    assert seen.phase == "aborted", seen.status.message
    assert "runcated" in seen.messages("Aborting")[0] or "finish" in seen.messages("Aborting")[0]
    assert load.failures == 0, load.errors
    tell(f"{seen.messages('Aborting')[0]}; {dict(load.finished)}")


def _two_language_models(folder: Path) -> FaultyMesh:
    """A mesh whose second language model has so small a context that it cuts its answers short."""
    mesh = FaultyMesh(folder, llm=True)
    objects = list(yaml.safe_load_all((folder / "istio" / "llm.yaml").read_text()))
    for each in objects:
        if each["kind"] == "DestinationRule":
            each["spec"]["subsets"].append({"name": "v2", "labels": {"version": "v2"}})
    (folder / "istio" / "llm.yaml").write_text(yaml.safe_dump_all(objects, sort_keys=False))
    document = yaml.safe_load((folder / "tidegate.yaml").read_text())
    second = server("llm", "v2")
    second["settings"] |= {"max_context_tokens": 42}
    document["servers"] = {
        "llm": document["servers"]["llm"],
        "llm-v2": second,
        "vision-v1": document["servers"]["vision-v1"],
        "vision-v2": document["servers"]["vision-v2"],
    }
    (folder / "tidegate.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return mesh
