"""The screen of a rollout: what it says, at every width, and how it follows events."""

import io
import json

import pytest
from rich.console import Console
from router_harness import canary

from tidegate.cli.rollout.explaining import explanation
from tidegate.cli.rollout.following import Follower
from tidegate.cli.rollout.screen import screen
from tidegate.cli.rollout.words import age, evidence_share, evidence_text, limit_text
from tidegate.rollout.messages import spec_message
from tidegate.rollout.v1 import rollout_pb2

NOW = 1_000_000_000.0


def _stamp(message, name, seconds):
    getattr(message, name).FromMicroseconds(round(seconds * 1e6))


@pytest.fixture
def rollout():
    message = spec_message(canary())
    message.spec.strategy.canary.ramp.harm_budget = 20
    message.spec.objectives.add(signal=rollout_pb2.SIGNAL_LATENCY, quantile=0.99)
    message.spec.objectives.add(signal=rollout_pb2.SIGNAL_PREDICTION_DRIFT)
    status = message.status
    status.phase = rollout_pb2.PHASE_PROGRESSING
    status.reason = "WaitingForEvidence"
    status.message = "waits for evidence: little is known"
    status.generation, status.stage, status.stages = 1, 2, 3
    status.stage_text = "v2 10%, v1 90%, until every objective is met"
    status.requests_per_second = 118.4
    status.harm_spent, status.harm_budget = 5.25, 20
    _stamp(status, "started_at", NOW - 600)
    _stamp(status, "stage_since", NOW - 90)
    _stamp(status, "in_force_since", NOW - 90)
    _stamp(status, "decide_by", NOW + 5400)
    status.in_force = True
    status.desired.weights.update({"v1": 90, "v2": 10})
    status.observed.weights.update({"v1": 90, "v2": 10})
    assessment = status.assessments.add(candidate="v2", harm_e=3.2, harm_threshold=100)
    assessment.objectives.add(
        metric="grpcFailures",
        verdict=rollout_pb2.VERDICT_OPEN,
        importance=rollout_pb2.IMPORTANCE_ABORT,
        harm_e=4,
        harm_threshold=200,
        safe_e=2,
        safe_threshold=20,
        effect=1.5,
        effect_low=0.5,
        effect_high=4,
        effect_limit=2,
        baseline_trials=9000,
        baseline_value=0.001,
        candidate_trials=1000,
        candidate_value=0.0015,
    )
    assessment.objectives.add(
        metric="latency 99%",
        verdict=rollout_pb2.VERDICT_MISSED,
        importance=rollout_pb2.IMPORTANCE_PAUSE,
        harm_e=1e9,
        harm_threshold=200,
        safe_e=0,
        safe_threshold=20,
        effect=3,
        effect_low=2,
        effect_limit=1.2,
        baseline_trials=9000,
        baseline_value=0.05,
        candidate_trials=1000,
        candidate_value=0.15,
    )
    assessment.objectives.add(
        metric="predictionDrift",
        verdict=rollout_pb2.VERDICT_NO_DATA,
        harm_threshold=200,
        safe_threshold=20,
        effect_limit=0.05,
    )
    event = status.last_events.add(number=7, kind="StageEntered", message="stage 2 of 3")
    _stamp(event, "time", NOW - 91)
    return message


def _drawn(renderable, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_the_screen_says_everything(rollout):
    text = _drawn(screen(rollout, NOW), 170)
    for words in (
        "models/vision  progressing  stage 2 of 3: v2 10%, v1 90%, until every objective is met",
        "host vision · started 10m ago · in this stage for 1m30s · 118 requests/s",
        "waits for evidence: little is known",
        "██████████████████████░░  90%     90%",
        "██░░░░░░░░░░░░░░░░░░░░░░  10%     10%",
        "0.1%  0.15%",
        "1.5x (limit 2x + 0.1%)",
        "4 of 200",
        "50ms  150ms",
        "> 200,000 of 200",
        "limit 5%",
        "3.2 of 100 to abort",
        "HARM  ██████░░░░░░░░░░░░░░░░░░  5.2 of 20 extra bad requests",
        "1h30m of 2h left",
        "StageEntered  stage 2 of 3",
    ):
        assert words in text, words


def test_an_effect_is_on_a_scale_around_its_limit(rollout):
    (line,) = [each for each in _drawn(screen(rollout, NOW), 170).splitlines() if "1.5x" in each]
    scale = line.split(" 1.5x")[0].split()[-1]
    assert len(scale) == 25
    assert scale.count("|") == scale.count("●") == 1
    assert scale.index("●") < scale.index("|") == 12
    assert scale[0] == scale[-1] == "·"


@pytest.mark.parametrize("width", [200, 150, 130, 112, 100, 80])
def test_no_column_is_cut_at_usual_widths(rollout, width):
    text = _drawn(screen(rollout, NOW), width)
    assert "…" not in text
    for words in ("grpcFailures", "latency 99%", "predictionDrift", "missed", "no data"):
        assert words in text


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_tiny_terminal_is_no_error(rollout, width):
    assert _drawn(screen(rollout, NOW), width)


def test_what_differs_is_marked(rollout):
    rollout.status.observed.weights.update({"v1": 50, "v2": 50})
    rollout.status.in_force = False
    rollout.status.problem = "the traffic cannot be read"
    rollout.status.assessments[0].sample_ratio.mismatch = True
    text = _drawn(screen(rollout, NOW), 120)
    assert "the split is on its way to the proxies" in text
    assert "the traffic cannot be read" in text
    assert "the versions do not get their intended shares" in text


def test_a_rollout_that_has_not_begun_has_a_screen():
    message = spec_message(canary())
    message.status.phase = rollout_pb2.PHASE_PENDING
    text = _drawn(screen(message, NOW), 100)
    assert "pending" in text
    assert "TRAFFIC" in text
    assert not text.endswith("\n\n")


def test_markup_of_users_is_text(rollout):
    rollout.status.message = "[bold]not bold[/bold] [/]"
    assert "[bold]not bold[/bold] [/]" in _drawn(screen(rollout, NOW), 100)


def test_an_explanation_says_what_has_to_happen(rollout):
    lines = explanation(rollout, NOW)
    assert lines[0] == "vision is progressing: waits for evidence: little is known."
    assert lines[1] == "The traffic of vision: v1 90%, v2 10%, in force for 1m30s."
    # 1,000 requests have brought e to 2; 20 is 4.32 times as far on a log scale.
    assert lines[2] == (
        "v2, grpcFailures: 0.15% against 0.1%; the effect is 1.5x (0.5x to 4x), and 2x +"
        " 0.1% is tolerated. Evidence that it is met: 2 of 20, about 3,322 more requests at this"
        " pace (4m41s); that it is missed: 4 of 200."
    )
    assert lines[3].endswith(
        "(2x to ∞), and 1.2x is tolerated. It is missed, which pauses the rollout."
    )
    assert lines[4] == "v2, predictionDrift: no data (0 trials)."
    assert lines[5] == "It goes on by itself once every objective that decides is met."
    assert lines[6] == "It has cost 5.2 extra bad requests of a budget of 20."
    assert lines[7] == "If nothing is decided within 1h30m, it pauses (decide.otherwise)."


def test_an_explanation_says_how_many_requests_are_not_in_the_evidence(rollout):
    words = "requests are not in the evidence"
    assert words not in "\n".join(explanation(rollout, NOW))
    rollout.status.lost_requests = 1234
    assert f"About 1,234 {words}, because their records were lost." in explanation(rollout, NOW)


def test_an_explanation_names_commands_that_reach_the_cluster(rollout):
    rollout.status.reason = "ForeignChange"
    lines = "\n".join(explanation(rollout, NOW, cluster="--context prod"))
    assert "`tidegate rollout resume models/vision --context prod` puts its split" in lines
    rollout.status.reason = "WaitingForEndpoints"
    lines = "\n".join(explanation(rollout, NOW, cluster="--context prod"))
    assert "`kubectl get pods,endpointslices` shows the endpoints" in lines
    assert "tidegate mesh status" not in lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (45.4, "45s"), (90, "1m30s"), (900, "15m"), (5400, "1h30m"), (3600 * 30, "30h"),
     (86400 * 3.5, "3d")],
)  # fmt: skip
def test_ages_are_short(seconds, text):
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("e", "threshold", "share", "text"),
    [
        (0, 100, 0, "0 of 100"),
        (10, 100, 0.5, "10 of 100"),
        (100, 100, 1, "100 of 100"),
        (float("inf"), 100, 1, "> 100,000 of 100"),
        (5.19e-10, 20, 0, "< 0.001 of 20"),
        (0.001, 20, 0, "0.001 of 20"),
        (1, 0, 0, "–"),
        (5, float("inf"), 0, "–"),
    ],
)
def test_evidence_is_told_on_a_log_scale(e, threshold, share, text):
    assert evidence_share(e, threshold) == pytest.approx(share)
    assert evidence_text(e, threshold) == text


@pytest.mark.parametrize(
    ("tolerate", "margin", "text"),
    [
        ({"difference": 0.1}, None, "+10%"),
        ({"ratio": 1.2}, 0.02, "1.2x + 2%"),
        ({"ratio": 1.5}, 0, "1.5x"),
        ({}, None, "1.2x + 0.1%"),
    ],
)
def test_a_limit_of_rates_is_told_as_the_file_has_it(rollout, tolerate, margin, text):
    objective = rollout_pb2.Objective(
        signal=rollout_pb2.SIGNAL_GRPC_FAILURES,
        tolerate=rollout_pb2.Tolerance(**tolerate),
        margin=margin,
    )
    # The limit of the effect is the ratio alone.
    assert limit_text(objective, 1.0) == text
    rollout.spec.objectives[0].CopyFrom(objective)
    assert f"(limit {text})" in _drawn(screen(rollout, NOW), 170)
    assert f"(≤ {text})" in _drawn(screen(rollout, NOW), 80)
    assert f", and {text} is tolerated" in explanation(rollout, NOW)[2]


def test_limits_that_are_no_rates_are_those_of_the_effect():
    quantile = rollout_pb2.Objective(signal=rollout_pb2.SIGNAL_LATENCY, quantile=0.99)
    drift = rollout_pb2.Objective(signal=rollout_pb2.SIGNAL_PREDICTION_DRIFT)
    gauge = rollout_pb2.Objective(signal=rollout_pb2.SIGNAL_PROMQL)
    assert [limit_text(each, 0.5) for each in (quantile, drift, gauge)] == ["0.5x", "50%", "0.5"]


def test_a_foreign_change_is_told_apart_from_what_is_wanted(rollout):
    rollout.status.phase = rollout_pb2.PHASE_PAUSED
    rollout.status.reason = "ForeignChange"
    rollout.status.observed.weights.update({"v1": 50, "v2": 50})
    lines = explanation(rollout, NOW)
    assert lines[1] == "The traffic of vision is v1 50%, v2 50%, as somebody else has set it."
    assert lines[2] == "The rollout wants v1 90%, v2 10%."


@pytest.mark.parametrize("height", [24, 12, 5])
def test_a_low_terminal_keeps_the_newest_events_each_on_one_line(rollout, height):
    for number in range(8, 16):
        event = rollout.status.last_events.add(number=number, kind="Waiting")
        event.message = f"event {number} " + "waits for a long time " * 10
        _stamp(event, "time", NOW)
    lines = _drawn(screen(rollout, NOW, height), 80).splitlines()
    assert len(lines) <= height
    assert all(f"Waiting  event {number}" in "\n".join(lines[-3:]) for number in (13, 14, 15))
    assert all(line.endswith("…") for line in lines[-3:])
    assert lines[0].startswith("models/vision") == (height > 3)


def test_the_live_screen_of_a_low_terminal_has_the_newest_event(rollout):
    for number in range(8, 16):
        event = rollout.status.last_events.add(number=number, kind="Waiting")
        event.message = f"event {number} " + "waits for a long time " * 10
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True)
    with Follower(console, clock=lambda: NOW) as follower:
        follower.show(_news(rollout))
        assert "event 15" in console.file.getvalue()


def _news(rollout, *numbers):
    message = rollout_pb2.WatchResponse(rollout=rollout)
    for number in numbers:
        message.events.add(number=number, kind="Waiting", message=f"event {number}")
    return message


def test_without_a_terminal_each_event_is_one_line(rollout):
    console = Console(width=100, file=io.StringIO())
    with Follower(console) as follower:
        follower.show(_news(rollout))
        follower.show(_news(rollout, 8, 9))
        # After a lost connection the stream begins again.
        follower.show(_news(rollout, 9, 10))
        follower.show(rollout_pb2.WatchResponse(rollout=rollout, removed=True))
    lines = console.file.getvalue().splitlines()
    assert [line[10:] for line in lines[:-1]] == [
        "StageEntered  stage 2 of 3",
        "Waiting  event 8",
        "Waiting  event 9",
        "Waiting  event 10",
    ]
    assert lines[-1] == "models/vision was removed"


def test_json_has_an_event_a_line(rollout, capsys):
    with Follower(Console(file=io.StringIO()), as_json=True) as follower:
        follower.skip(rollout)
        follower.show(_news(rollout, 8))
        follower.show(rollout_pb2.WatchResponse(rollout=rollout, removed=True))
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {
        "rollout": "models/vision",
        "phase": "PHASE_PROGRESSING",
        "number": 8,
        "kind": "Waiting",
        "message": "event 8",
    }
    assert last == {"rollout": "models/vision", "removed": True}


def test_several_rollouts_are_followed_from_their_present_state(rollout, capsys):
    console = Console(width=200, file=io.StringIO())
    with Follower(console, named=True, live=False) as follower:
        follower.show(rollout_pb2.WatchResponse(rollout=rollout))
        follower.show(_news(rollout, 8))
    first, second = console.file.getvalue().splitlines()
    assert first == "models/vision is progressing: waits for evidence: little is known"
    assert second.endswith("models/vision  Waiting  event 8")
    with Follower(console, named=True, live=False, as_json=True) as follower:
        follower.show(rollout_pb2.WatchResponse(rollout=rollout))
    assert json.loads(capsys.readouterr().out) == {
        "rollout": "models/vision",
        "phase": "PHASE_PROGRESSING",
        "message": "waits for evidence: little is known",
    }


def test_a_terminal_shows_the_last_state(rollout):
    console = Console(width=120, height=50, file=io.StringIO(), force_terminal=True)
    with Follower(console, clock=lambda: NOW) as follower:
        follower.show(_news(rollout))
        rollout.status.message = "the last message"
        follower.show(_news(rollout, 8))
    assert console.file.getvalue().count("the last message") >= 1


def test_a_shadow_has_no_winner(rollout):
    rollout.status.winner = "v2"
    rollout.spec.strategy.shadow.SetInParent()
    text = _drawn(screen(rollout, NOW), 150)
    assert "v2 met every objective" in text
    assert "winner" not in text


def test_each_of_several_candidates_has_its_objectives(rollout):
    rollout.spec.ClearField("candidate")
    rollout.spec.candidates.extend(["v2", "v3"])
    rollout.spec.strategy.ab.until_evidence = True
    other = rollout.status.assessments.add()
    other.CopyFrom(rollout.status.assessments[0])
    other.candidate = "v3"
    rollout.status.winner = "v3"
    rollout.status.desired.weights.update({"v1": 34, "v2": 33, "v3": 33})
    text = _drawn(screen(rollout, NOW), 150)
    assert text.count("grpcFailures") == 2
    assert "the winner is v3" in text
    assert [line.split()[0] for line in text.splitlines() if line[:2] in ("v1", "v2", "v3")] == [
        "v1",
        "v2",
        "v3",
    ]
    assert sum(each.startswith("v3, ") for each in explanation(rollout, NOW)) == 3
