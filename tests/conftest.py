"""Settings of all tests: Hypothesis profiles, and whether a test may be skipped.

Hypothesis uses the profile `tests`, or `fuzz` with `--hypothesis-profile=fuzz`. `make test` runs
the same examples each time, `make fuzz` new ones. A failure prints the example and a line
(`@reproduce_failure`) that repeats it. In `make fuzz` the seed alone determines the examples, so
the seed repeats a failure; Hypothesis stores nothing between runs.

With `--fail-skipped`, as in CI, a skipped test counts as failed.
"""

from collections.abc import Generator

import pytest
from hypothesis import settings

# No deadline: on a shared machine the time of an example says nothing about the code.
settings.register_profile("tests", derandomize=True, print_blob=True, deadline=None)
settings.register_profile("fuzz", max_examples=1000, database=None, print_blob=True, deadline=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-skipped",
        action="store_true",
        help="count skipped tests as failed, except those marked gpu: CI has all that tests need",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--fail-skipped") and item.get_closest_marker("gpu") is None:
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("--fail-skipped"):
        _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _, _, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; with --fail-skipped nothing may be skipped"
