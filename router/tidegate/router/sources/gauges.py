"""Gauges of the signal ``promql``: a query gives one number for each version.

In a query ``$version`` stands for the subset and ``$host`` for the host. A query that does not give
exactly one finite number gives no data, and its problem says why.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from tidegate.evidence.window import MetricName, TrafficWindow, VersionName, VersionTraffic
from tidegate.prometheus import PrometheusApi, PrometheusError
from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.router.sources.source import Epoch, Watched

__all__ = ["Gauges", "read_gauges", "with_gauges"]

_ESCAPED: Final = str.maketrans({"\\": "\\\\", '"': '\\"'})


class Gauges(msgspec.Struct, frozen=True):
    """The numbers of a rollout's queries.

    Attributes:
        by_version: The numbers by version and measure.
        problems: Why queries gave no number.
    """

    by_version: dict[VersionName, dict[MetricName, float]]
    problems: tuple[str, ...] = ()


async def read_gauges(api: PrometheusApi, watched: Watched, at_s: float) -> Gauges:
    """Asks the queries of a rollout for each candidate: gauges are not compared with the baseline.

    Args:
        api: The Prometheus.
        watched: What the rollout counts.
        at_s: The time for which to ask.
    """
    asked = [
        (VersionName(version), measure)
        for measure in watched.measures
        if measure.kind is MeasureKind.GAUGE
        for version in watched.candidates
    ]
    # At once: the rollout takes no step meanwhile, and Prometheus may not answer.
    answers = await asyncio.gather(
        *(_ask(api, measure, watched.host, version, at_s) for version, measure in asked)
    )
    found: dict[VersionName, dict[MetricName, float]] = {}
    problems = []
    for (version, measure), answer in zip(asked, answers, strict=True):
        if isinstance(answer, str):
            problems.append(f"{measure.metric} of {version}: {answer}")
        else:
            found.setdefault(version, {})[measure.metric] = answer
    return Gauges(found, tuple(problems))


async def _ask(
    api: PrometheusApi, measure: Measure, host: str, version: str, at_s: float
) -> float | str:
    """Returns the number of a query, or why there is none."""
    query = substituted(measure.query, host, version)
    try:
        return await api.number(query, at_s)
    except PrometheusError as error:
        return f"the query {query} {error}"


def substituted(query: str, host: str, version: str) -> str:
    """Returns a query with the host and the version in place of their variables."""
    query = query.replace("$version", version.translate(_ESCAPED))
    return query.replace("$host", host.translate(_ESCAPED))


def with_gauges(
    windows: Sequence[TrafficWindow], gauges: Gauges, epoch: Epoch | None, now_s: float
) -> tuple[TrafficWindow, ...]:
    """Adds gauges to the last window, or makes a window for them.

    Args:
        windows: The windows, the oldest first.
        gauges: The gauges.
        epoch: The epoch that lasts; None if none does.
        now_s: The time of the gauges.
    """
    if not gauges.by_version or epoch is None:
        return tuple(windows)
    shares = {VersionName(name): share for name, share in epoch.shares.items()}
    *earlier, last = windows or [
        TrafficWindow(start_s=now_s, end_s=now_s, shares=shares, versions={})
    ]
    if last.shares != shares:
        earlier.append(last)
        last = TrafficWindow(start_s=now_s, end_s=now_s, shares=shares, versions={})
    versions = dict(last.versions)
    for name, numbers in gauges.by_version.items():
        traffic = versions.get(name, VersionTraffic())
        versions[name] = msgspec.structs.replace(traffic, gauges=numbers)
    return (*earlier, msgspec.structs.replace(last, versions=versions))
