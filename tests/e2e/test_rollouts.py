"""Rollouts of the real classifier behind the real Envoy, under load: a good one and bad ones.

The mesh injects the candidate's faults (`FaultyMesh`), so both servers are real.
"""

from collections.abc import Iterator

import grpc
import pytest
from laptop_mesh import CLASSIFIER, MODELS
from rollout_mesh import FaultyMesh
from steady_load import SteadyLoad, photographs

from tidegate.mesh.v1 import mesh_pb2
from tidegate.rollout.v1 import rollout_pb2

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not all((MODELS / CLASSIFIER / version).exists() for version in ("1-fp32", "1-int8")),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]

# Little enough for two servers on one core, so that none of them refuses a call.
RATE = 15.0
PHOTOGRAPHS = photographs()
STEPS = [
    {"weight": 5},
    {"pause": {"for": "3s"}},
    {"weight": 30},
    {"pause": {"untilEvidence": True}},
    {"weight": 50},
]
CANARY = {
    "strategy": {"canary": {"steps": STEPS}},
    "objectives": [{"signal": "grpcFailures", "margin": "3%"}],
}
HALF = {"canary": {"steps": [{"weight": 50}, {"pause": {"untilApproved": True}}]}}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[FaultyMesh]:
    mesh = FaultyMesh(tmp_path_factory.mktemp("mesh"))
    try:
        mesh.tidegate("up", "--detach")
        yield mesh
    finally:
        mesh.tidegate("down")


@pytest.fixture(autouse=True)
def _traffic_as_the_files_say(mesh) -> Iterator[None]:
    yield
    mesh.set_fault()
    mesh.start_over()


def weights(mesh: FaultyMesh) -> dict[str, float]:
    with mesh.controller() as controller:
        traffic = controller.GetTraffic(mesh_pb2.GetTrafficRequest(host="vision"))
    return {each.subset: each.weight for each in traffic.split.weights if each.weight}


@pytest.mark.long
def test_a_good_version_is_promoted_by_itself_and_no_request_is_lost(mesh):
    with SteadyLoad(mesh.vision_port, RATE, PHOTOGRAPHS) as load:
        mesh.apply("good", **CANARY)
        seen = mesh.follow("good", "promoted", "aborted", "paused")
    assert seen.phase == "promoted", seen.status.message
    assert load.failures == 0, load.errors
    assert [message.split(",")[0] for message in seen.messages("SplitInForce")] == [
        "v2 5%",
        "v2 30%",
        "v2 50%",
        "v2 100%",
    ]
    assert "every objective is met: grpcFailures: 0% of" in seen.messages("Promoting")[0]
    assert weights(mesh) == {"v2": 100.0}
    mesh.undo("good")
    assert weights(mesh) == {"v1": 100.0}


def test_a_version_that_fails_is_rolled_back_with_the_reason(mesh):
    mesh.set_fault(unavailable=20)
    try:
        with SteadyLoad(mesh.vision_port, RATE, PHOTOGRAPHS) as load:
            mesh.apply("failing", **(CANARY | {"strategy": HALF}))
            seen = mesh.follow("failing", "promoted", "aborted", "paused")
    finally:
        mesh.set_fault()
    assert seen.phase == "aborted", seen.status.message
    assert seen.status.reason == "HarmProven"
    (why,) = seen.messages("Aborting")
    assert "v2 is worse: grpcFailures" in why
    # Only the injected faults failed: the changes of traffic lost nothing.
    assert load.failures
    assert all("fault filter abort" in error for error in load.errors), load.errors
    assert weights(mesh) == {"v1": 100.0}


@pytest.mark.long
def test_a_version_that_is_slow_is_rolled_back(mesh):
    mesh.set_fault(delay="300ms")
    objectives = [
        {"signal": "grpcFailures"},
        {"signal": "latency", "quantile": "50%", "tolerate": "1.5x"},
    ]
    try:
        with SteadyLoad(mesh.vision_port, RATE, PHOTOGRAPHS) as load:
            mesh.apply("slow", strategy=HALF, objectives=objectives)
            seen = mesh.follow("slow", "promoted", "aborted", "paused")
    finally:
        mesh.set_fault()
    assert seen.phase == "aborted", seen.status.message
    assert "latency 50%" in seen.messages("Aborting")[0]
    assert load.failures == 0, load.errors


def test_a_shift_is_refused_unless_forced_and_a_forced_one_pauses_the_rollout(mesh):
    request = mesh_pb2.ShiftRequest(host="vision")
    request.weights.add(subset="v2", weight=80)
    with SteadyLoad(mesh.vision_port, 5, PHOTOGRAPHS), mesh.controller() as controller:
        mesh.apply("disturbed", strategy=HALF, objectives=[{"signal": "grpcFailures"}])
        mesh.follow("disturbed", "WaitingForApproval")
        with pytest.raises(grpc.RpcError) as refused:
            list(controller.Shift(request))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "models/disturbed" in refused.value.details()
        request.force = True
        list(controller.Shift(request))
        seen = mesh.follow("disturbed", "ForeignChange")
        assert seen.phase == "paused"
        assert "v2 80%" in seen.status.message
        with mesh.rollouts() as rollouts:
            rollouts.Resume(rollout_pb2.ResumeRequest(name="disturbed"))
            mesh.follow("disturbed", "WaitingForApproval")
            assert weights(mesh) == {"v1": 50.0, "v2": 50.0}
            rollouts.Abort(rollout_pb2.AbortRequest(name="disturbed"))
        mesh.follow("disturbed", "aborted")
    assert weights(mesh) == {"v1": 100.0}


def test_a_shadow_compares_both_versions_before_any_user_sees_the_new_one(mesh):
    objectives = [
        {"signal": "grpcFailures", "margin": "5%"},
        {"signal": "answerDisagreement", "tolerate": "20%"},
    ]
    with SteadyLoad(mesh.vision_port, RATE, PHOTOGRAPHS) as load:
        mesh.apply("shadow", strategy={"shadow": {"mirror": 100}}, objectives=objectives)
        seen = mesh.follow("shadow", "completed", "aborted", "paused", seconds=180)
    assert seen.phase == "completed", seen.status.message
    assert seen.status.winner == "v2"
    # Every user was answered by the baseline, and no request was lost.
    assert set(load.versions) == {"1-fp32"}
    assert load.failures == 0, load.errors
    (assessment,) = seen.status.assessments
    assert all(each.candidate_trials for each in assessment.objectives)
    assert weights(mesh) == {"v1": 100.0}


def test_testers_reach_the_candidate_whatever_the_weights_are(mesh):
    testers = [{"header": "x-tester", "value": "yes"}, {"cookie": "tester"}]
    mesh.apply("tested", strategy={"manual": {"weights": [0, 100]}}, testers=testers)
    mesh.follow("tested", "WaitingForApproval")
    assert mesh.answered_by() == {"1-fp32"}
    assert mesh.answered_by(("x-tester", "yes")) == {"1-int8"}
    assert mesh.answered_by(("cookie", "a=b; tester=1")) == {"1-int8"}
    assert mesh.answered_by(("x-tester", "no")) == {"1-fp32"}
    with mesh.rollouts() as rollouts:
        rollouts.Abort(rollout_pb2.AbortRequest(name="tested"))
    mesh.follow("tested", "aborted")
    assert mesh.answered_by(("x-tester", "yes")) == {"1-fp32"}
