"""What holds for all tests: how property tests run, and whether a test may be skipped.

`tests` is Hypothesis's profile unless `--hypothesis-profile=fuzz` says otherwise: the same examples
each time in `make test`, fresh ones in `make fuzz`. A failure prints the example, and a line
(`@reproduce_failure`) that brings it back. In `make fuzz` the seed alone decides what is tried, so
that the seed brings a failure back; nothing is remembered between runs.

With `--fail-skipped`, as in CI, a skipped test is a failed one.
"""

from collections.abc import Generator

import pytest
from hypothesis import settings

# How long an example takes is no property of the code on a machine that others use too.
settings.register_profile("tests", derandomize=True, print_blob=True, deadline=None)
settings.register_profile("fuzz", max_examples=1000, database=None, print_blob=True, deadline=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-skipped",
        action="store_true",
        help="count a skipped test as failed, but for those marked gpu: CI has all that tests need",
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
