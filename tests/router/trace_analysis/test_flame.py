"""Flame graphs in the formats of their viewers, and as a picture."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from made_traces import many_calls, span, trace, vision_call

from tidegate.trace_analysis.analysis import Analysis, Question
from tidegate.trace_analysis.flame import d3_tree, speedscope
from tidegate.trace_analysis.flame_picture import flame_picture

SERVICE = "tidegate-vision"
# file-format-schema.json of the npm package speedscope 1.25.0 (MIT, Jamie Wong).
SCHEMA = Path(__file__).with_name("speedscope.schema.json")


def graph(traces):
    made = Analysis(Question(service=SERVICE))
    made.add_all(traces)
    return made.flame_graph(), made.report()


def test_speedscopes_format_is_that_of_its_schema():
    made, report = graph(many_calls(60))
    file = speedscope(made)
    jsonschema.validate(file, json.loads(SCHEMA.read_text()))
    assert [each["name"] for each in file["profiles"]] == [
        f"{version.version}: mean of {version.calls} calls" for version in report.versions
    ]


def test_a_profile_is_as_long_as_a_mean_call():
    made, report = graph(many_calls(60))
    for profile, version in zip(speedscope(made)["profiles"], report.versions, strict=True):
        assert profile["endValue"] == pytest.approx(version.time.mean_us)
        assert sum(profile["weights"]) == pytest.approx(profile["endValue"])


def test_frames_stand_in_the_order_of_time():
    file = speedscope(graph([vision_call(1, (100, 200, 300, 400))])[0])
    names = [each["name"] for each in file["shared"]["frames"]]
    deepest = [names[stack[-1]] for stack in file["profiles"][0]["samples"] if len(stack) == 5]
    assert deepest == [f"{SERVICE} {stage}" for stage in ("queue", "decode", "batch", "inference")]


def test_a_node_of_d3_is_as_wide_as_its_children_and_itself():
    tree = d3_tree(graph(many_calls(60))[0])
    (call,) = tree["children"][0]["children"]
    own = call["value"] - sum(each["value"] for each in call["children"])
    assert own == pytest.approx(200)
    assert tree["value"] == pytest.approx(sum(each["value"] for each in tree["children"]))


def test_a_version_without_answers_has_no_profile():
    calls = [vision_call(1, (1, 1, 1, 1)), vision_call(2, (1,) * 4, version="x", status="INTERNAL")]
    made, _ = graph(calls)
    assert len(speedscope(made)["profiles"]) == 1
    assert "x: mean" not in flame_picture(made)


def test_the_picture_has_a_panel_for_each_version_and_a_frame_for_each_span():
    made, _ = graph(many_calls(60))
    picture = ET.fromstring(flame_picture(made))
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    titles = [each.text for each in picture.findall("svg:g/svg:title", namespace)]
    assert len(titles) == 16
    assert sum(title.startswith(f"{SERVICE} inference: ") for title in titles) == 2
    assert sum("100.0%" in title for title in titles) == 2


def test_names_from_outside_do_no_harm_in_a_picture():
    made, _ = graph([trace(1, span(1, 0, SERVICE, '<script>"&\x1b', 0, 9_000, "server"))])
    text = flame_picture(made)
    ET.fromstring(text)
    assert "<script>" not in text
    assert "\x1b" not in text
