"""``tidegate rollout report``: a page that stands alone, whatever names are in it."""

import json
import re
from html.parser import HTMLParser

import msgspec
import pytest
from router_harness import canary

from tidegate.cli.rollout.reporting import report_page
from tidegate.evidence.assessment import Assessment, ObjectiveAssessment, SampleRatio, Verdict
from tidegate.evidence.plan import Importance
from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.samples import sample_of
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.messages import event_message, rollout_message, sample_message
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.rollout.traffic import TrafficSplit
from tidegate.rollout.v1 import rollout_pb2

_VOID = {"meta", "br", "path", "use", "rect"}


class _Page(HTMLParser):
    """What a page has, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.words, self.links = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def assert_stands_alone(text: str) -> _Page:
    page = _Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "img" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)", text)
    hosts = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert hosts <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    return page


def test_a_report_is_written_with_plots_from_the_real_service(server, tidegate, write, tmp_path):
    done = tidegate("rollout", "apply", "-f", write(canary()), "--wait", "--timeout", "60s")
    assert done.code == 0, done
    done = tidegate("rollout", "report", "vision")
    assert (done.code, done.out) == (0, "")
    assert "wrote vision.html" in done.err
    text = (tmp_path / "vision.html").read_text()
    page = assert_stands_alone(text)
    assert page.tags.count("svg") == 5
    assert "mathdefault" not in text
    words = " ".join(page.words)
    for expected in ("Promoted", "Evidence about v2", "grpcFailures", "StageEntered", "harmBudget"):
        assert (expected in words) == (expected != "harmBudget")
    assert tidegate("rollout", "report", "vision", "-o", "-").out.startswith("<!doctype html>")
    found = json.loads(tidegate("rollout", "report", "vision", "--json").out)
    assert len(found["samples"]) > 2
    assert found["samples"][-1]["assessments"][0]["objectives"][0]["verdict"] == "VERDICT_MET"


def test_a_report_that_cannot_be_written_is_a_wrong_command_line(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(canary()))
    done = tidegate("rollout", "report", "vision", "-o", "no/such/folder/a.html")
    assert done.code == 2


_NASTY = "<script>alert('$x$ & \"y\"')</script>"


def _assessed(e: float, effect: float | None) -> Assessment:
    objective = ObjectiveAssessment(
        metric=_NASTY,
        importance=Importance.ABORT,
        verdict=Verdict.OPEN,
        harm_e=e,
        harm_threshold=200.0,
        safe_e=1 / max(e, 1e-9),
        safe_threshold=20.0,
        effect=effect,
        effect_low=None,
        effect_high=None,
        effect_limit=1.2,
        baseline_trials=10,
        baseline_value=0.5,
        candidate_trials=10,
        candidate_value=None,
        detail=_NASTY,
    )
    ratio = SampleRatio(e=1, threshold=1e6, intended=None, observed=None, mismatch=True)
    return Assessment(
        objectives=(objective,),
        harm_e=e,
        harm_threshold=100.0,
        abort=False,
        pause=False,
        promote=False,
        sample_ratio=ratio,
        extra_bad_requests=0.0,
        excess_rate_high=1.0,
        reason=_NASTY,
    )


@pytest.mark.parametrize("effects", [(None, None, None), (0.0, float("inf"), 1.0)])
def test_names_of_users_are_text_and_odd_numbers_are_drawn(effects):
    text = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: a, annotations: {note: "<script>alert(1)</script>"}}
spec:
  host: h
  baseline: v1
  candidate: v2
  strategy: {manual: {weights: [1]}}
  objectives: [{signal: promql, name: gauge, query: "up{a=\\"<b>\\"}", above: 1}]
"""
    (rollout,) = read_rollouts(text, "f")
    statuses = [
        RolloutStatus(
            phase=Phase.PROGRESSING,
            started_s=1000.0,
            message=_NASTY,
            original=TrafficSplit(weights={"v1": 100.0}),
            desired=TrafficSplit(weights={"v1": 99.0, "v2": 1.0}),
            assessments={"v2": _assessed(e, effect)},
        )
        for e, effect in zip((0.0, 5.0, float("inf")), effects, strict=True)
    ]
    event = Event(
        number=1,
        time_s=1001.0,
        kind=EventKind.ABORTING,
        message=_NASTY,
        numbers={_NASTY: float("inf")},
    )
    history = rollout_pb2.GetHistoryResponse(
        events=[event_message(event)],
        samples=[sample_message(sample_of(s, 1000.0 + n)) for n, s in enumerate(statuses)],
    )
    page = assert_stands_alone(report_page(rollout_message(rollout, statuses[-1]), history, 1100.0))
    assert _NASTY in " ".join(page.words)


def test_a_rollout_without_samples_has_a_report():
    text = report_page(
        rollout_message(canary(), RolloutStatus()), rollout_pb2.GetHistoryResponse(), 1000.0
    )
    page = assert_stands_alone(text)
    assert "There are no samples yet." in page.words


def test_the_reason_is_told_in_full_once_and_e_values_are_explained():
    reason = "every objective is met: " + "grpcFailures: 0% of 213 on v2; " * 5 + "enough"
    assessment = msgspec.structs.replace(_assessed(2.0, 1.0), reason=reason)
    status = RolloutStatus(
        phase=Phase.PROMOTED, started_s=1.0, message=reason, assessments={"v2": assessment}
    )
    event = Event(number=1, time_s=2.0, kind=EventKind.PROMOTING, message=f"v2 wins: {reason}")
    history = rollout_pb2.GetHistoryResponse(events=[event_message(event)])
    text = report_page(rollout_message(canary(), status), history, 9.0)
    assert text.count(reason) == 1
    assert text.count("v2 wins: every objective is met") == 2
    assert text.count("An e-value measures evidence") == 1


def test_the_same_rollout_gives_the_same_page():
    status = RolloutStatus(
        started_s=1.0,
        desired=TrafficSplit(weights={"v1": 100.0}),
        assessments={"v2": _assessed(2.0, 1.0)},
    )
    samples = [sample_message(sample_of(status, float(at))) for at in (1, 2, 3)]
    history = rollout_pb2.GetHistoryResponse(samples=samples)
    message = rollout_message(canary(), msgspec.structs.replace(status))
    assert report_page(message, history, 9.0) == report_page(message, history, 9.0)
