"""The results of `tidegate classify --repeat`: shares of versions, errors, latencies."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tidegate.cli.serving.classify_results import (
    ImageOutcome,
    summarise_latencies,
    summarise_repeats,
)
from tidegate.client import ClassifyResult, InvalidInputError, VisionTimings


def outcome(*versions: str, errors: int = 0) -> ImageOutcome:
    timings = VisionTimings(0.0, 0.0, 0.0, 0.0, 1)
    return ImageOutcome(
        "cat.jpg",
        results=tuple(ClassifyResult("net", each, "int8", (), timings) for each in versions),
        errors=tuple(InvalidInputError("it is not there") for _ in range(errors)),
        latencies_s=tuple(0.001 for _ in versions),
    )


def test_versions_are_counted_over_all_images():
    report = summarise_repeats([outcome("1", "2", "1"), outcome("1", errors=2)], 1.0)
    shares = [(each.version, each.count, each.share) for each in report.versions]
    assert shares == [("1", 3, 0.75), ("2", 1, 0.25)]
    assert report.errors == {"NOT_SENT": 2}
    assert (report.latency.count, report.latency.failed) == (4, 2)


def test_without_an_answer_there_are_no_shares_and_no_latencies():
    report = summarise_repeats([outcome(errors=1)], 1.0)
    assert (report.versions, report.latency) == ((), None)
    assert report.as_object()["errors"] == {"NOT_SENT": 1}


@given(st.lists(st.sampled_from(["1", "2", "3"]), min_size=1))
def test_shares_add_up_to_one(versions):
    report = summarise_repeats([outcome(*versions)], 1.0)
    assert sum(each.share for each in report.versions) == pytest.approx(1.0)
    assert sum(each.count for each in report.versions) == len(versions)


def test_figures_of_a_hundred():
    summary = summarise_latencies([index / 1000 for index in range(1, 101)], failed=2, seconds=2.0)
    assert (summary.count, summary.failed, summary.per_second) == (100, 2, 50.0)
    assert (summary.min_ms, summary.p50_ms, summary.p90_ms) == (1, 50, 90)
    assert (summary.p95_ms, summary.p99_ms, summary.max_ms) == (95, 99, 100)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_figures_are_ordered_and_were_measured(latencies):
    summary = summarise_latencies(latencies, failed=0, seconds=1.0)
    figures = [summary.min_ms, summary.p50_ms, summary.p90_ms, summary.p95_ms]
    figures += [summary.p99_ms, summary.max_ms]
    assert figures == sorted(figures)
    assert set(figures) <= {latency * 1000 for latency in latencies}
