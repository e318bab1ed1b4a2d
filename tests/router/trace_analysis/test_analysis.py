"""The analysis: the report, and the questions that it cannot answer."""

import json
from dataclasses import asdict

import pytest
from made_traces import START_US, many_calls, span, trace, vision_call

from tidegate.trace_analysis.analysis import (
    Analysis,
    NoCallsError,
    Question,
    UnknownVersionError,
)
from tidegate.trace_analysis.spans import Trace

SERVICE = "tidegate-vision"


def analysis(traces, **question):
    made = Analysis(Question(service=SERVICE, **question))
    made.add_all(traces)
    return made


def report(traces, **question):
    return analysis(traces, **question).report()


def test_no_traces_is_an_error():
    with pytest.raises(NoCallsError, match="there are no calls of tidegate-vision in the traces"):
        report([])
    with pytest.raises(NoCallsError, match="no calls of tidegate-vision VisionService/Nothing"):
        report([vision_call(1, (1, 1, 1, 1))], operation="VisionService/Nothing")


def test_only_incomplete_traces_are_an_error_that_says_so():
    made = vision_call(1, (1, 1, 1, 1))
    cut = Trace(made.trace_id, (made.spans[0], *made.spans[2:]))
    with pytest.raises(NoCallsError, match="all 2 traces with calls of tidegate-vision are incomp"):
        report([cut, cut])


def test_an_unknown_version_is_an_error_that_names_those_that_there_are():
    with pytest.raises(UnknownVersionError) as raised:
        report(many_calls(50), versions=("1-int9",))
    text = str(raised.value)
    assert text.startswith("no call of tidegate-vision was served by version 1-int9; there are ")
    assert "1-fp32 (v1)" in text
    assert "1-int8 (v2)" in text
    assert text.endswith("; did you mean 1-int8?")


def test_a_version_without_an_answer_cannot_be_compared():
    calls = [
        vision_call(1, (1, 1, 1, 1)),
        vision_call(2, (1, 1, 1, 1), version="1-int8", status="UNAVAILABLE"),
    ]
    with pytest.raises(NoCallsError, match="got an answer from version 1-int8"):
        report(calls, compare=("v1", "v2"))


def test_versions_may_be_named_by_their_subsets():
    found = report(many_calls(200), versions=("v2",))
    assert [(each.version, each.subset) for each in found.versions] == [("1-int8", "v2")]
    assert found.left_out.other_versions == 200 - found.calls
    compared = report(many_calls(200), compare=("v1", "1-int8")).comparison
    assert (compared.first, compared.second) == ("1-fp32", "1-int8")


def test_calls_without_a_version_do_not_take_the_name_of_a_subset():
    calls = [*many_calls(200), vision_call(999, (1, 1, 1, 1), version="")]
    found = report(calls, versions=("v1",))
    assert [each.version for each in found.versions] == ["1-fp32"]


def test_the_report_has_every_version_with_most_calls_first():
    calls = [vision_call(number, (100, 200, 300, 400)) for number in range(1, 4)]
    calls.append(vision_call(9, (1, 1, 1, 1), version="1-int8", status="RESOURCE_EXHAUSTED"))
    found = report(calls)
    assert (found.calls, found.spans) == (4, 32)
    fp32, int8 = found.versions
    assert (fp32.version, fp32.calls, fp32.statuses, fp32.answered) == ("1-fp32", 3, {"OK": 3}, 3)
    assert fp32.time.p50.value == fp32.time.mean_us == 1_800
    assert {kind: summary.mean_us for kind, summary in fp32.kinds.items()} == {
        "queue": 400,
        "compute": 600,
        "server": 200,
        "outside": 600,
    }
    assert sum(stage.share for stage in fp32.stages) == pytest.approx(1)
    assert fp32.stages[0].name == "tidegate-vision inference"
    assert (int8.time, int8.stages, int8.kinds) == (None, (), {})
    assert [(each.status, each.version) for each in found.failed] == [
        ("RESOURCE_EXHAUSTED", "1-int8")
    ]


def test_batches_are_grouped_by_size():
    calls = [
        vision_call(number, (0, 0, 0, 100 * number), batch=number) for number in (1, 2, 3, 4, 7, 8)
    ]
    (version,) = report(calls).versions
    groups = [(each.smallest, each.largest, each.calls) for each in version.batches]
    assert groups == [(1, 1, 1), (2, 2, 1), (3, 4, 2), (7, 8, 2)]
    assert [each.compute.p50.value for each in version.batches] == [100, 200, 300, 700]


def test_the_slowest_calls_have_their_traces_and_their_largest_stage():
    calls = [vision_call(number, (10, 10, 10, 100 * number)) for number in range(1, 20)]
    slowest = report(calls, slowest=2).slowest
    assert [each.trace_id for each in slowest] == [f"{number:032x}" for number in (19, 18)]
    assert (slowest[0].stage, slowest[0].stage_us) == ("tidegate-vision inference", 1_900)


def test_what_is_left_out_or_corrected_is_counted():
    skewed = trace(
        3,
        span(1, 0, "client", "call", 9_000, 1_000, "client"),
        span(2, 1, SERVICE, "serve", 0, 800, "server"),
    )
    made = vision_call(2, (1, 1, 1, 1))
    cut = Trace(made.trace_id, (made.spans[0], *made.spans[2:]))
    left_out = report([vision_call(1, (1, 1, 1, 1)), cut, skewed]).left_out
    assert (left_out.incomplete, left_out.skewed, left_out.largest_skew_us) == (1, 1, 9_000)


def test_the_report_is_json():
    found = report(many_calls(100), compare=("v1", "v2"))
    text = json.dumps(asdict(found), allow_nan=False)
    assert json.loads(text)["first_us"] == START_US + 1_000


def test_calls_without_a_version_are_one_group():
    calls = [trace(1, span(1, 0, SERVICE, "serve", 0, 10, "server"))]
    assert [each.version for each in report(calls).versions] == [""]
    with pytest.raises(UnknownVersionError, match=r"there are \(no version\)$"):
        report(calls, versions=("v1",))
