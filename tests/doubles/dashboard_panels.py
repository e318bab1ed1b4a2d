"""Which panels of the dashboards have no data, as a real Prometheus answers their queries."""

import asyncio
import time

from tidegate.cli.dashboard.answers import TimeRange, ask
from tidegate.cli.dashboard.definitions import read_dashboard, shipped_dashboards

# What no machine of these tests has, by the heading of the panels: the only ones that may be empty.
GPU = "GPU (with NVIDIA's exporter)"
CLUSTER = "Kubernetes (of a cluster's router)"
LAPTOP = "Mesh controller (of a laptop)"

SINCE_S = 600.0
_ASK_AGAIN_S = 5.0


async def empty_panels(url, exempt):
    """Returns the panels without data, and the problems of their queries, by dashboard and title.

    Args:
        url: The address of the Prometheus.
        exempt: The headings of the panels that may be empty.
    """
    now_s = time.time()
    found = {}
    for name, path in shipped_dashboards().items():
        heading = ""
        shown, _ = await ask(url, read_dashboard(path), TimeRange(now_s - SINCE_S, now_s), {})
        for data in shown:
            heading = data.panel.title if data.panel.type == "row" else heading
            if data.panel.type == "row" or heading in exempt:
                continue
            if data.problem or not data.lines:
                found[f"{name}: {heading}: {data.panel.title}"] = data.problem or "no data"
    return found


async def all_panels_have_data(url, exempt, within_s):
    """Waits until every panel has data.

    Args:
        url: The address of the Prometheus.
        exempt: The headings of the panels that may be empty.
        within_s: How long it may take.
    """
    deadline_s = time.monotonic() + within_s
    while found := await empty_panels(url, exempt):
        assert time.monotonic() < deadline_s, found
        await asyncio.sleep(_ASK_AGAIN_S)
