"""Latency figures are by nearest rank."""

import hypothesis.strategies as st
from hypothesis import given

from tidegate.cli.serving.latency import summarise


def test_figures_of_a_hundred():
    summary = summarise([index / 1000 for index in range(1, 101)], failed=2, seconds=2.0)
    assert (summary.count, summary.failed, summary.per_second) == (100, 2, 50.0)
    assert (summary.min_ms, summary.p50_ms, summary.p90_ms) == (1, 50, 90)
    assert (summary.p95_ms, summary.p99_ms, summary.max_ms) == (95, 99, 100)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_figures_are_ordered_and_were_measured(latencies):
    summary = summarise(latencies, failed=0, seconds=1.0)
    figures = [summary.min_ms, summary.p50_ms, summary.p90_ms, summary.p95_ms]
    figures += [summary.p99_ms, summary.max_ms]
    assert figures == sorted(figures)
    assert set(figures) <= {latency * 1000 for latency in latencies}
