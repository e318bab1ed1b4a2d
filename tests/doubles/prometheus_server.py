"""A real Prometheus that scrapes the ports of a test and answers PromQL queries.

    async with prometheus(tmp_path, {"job": port}) as server:
        await server.until("up == 1")
        assert await server.value("sum(rate(requests_total[1m]))") > 0

It scrapes twice a second. No test asserts when something was scraped: `until` polls.
"""

import asyncio
import json
import shutil
import socket
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

WAIT_S = 60.0
_ASK_AGAIN_S = 0.05


class PrometheusServer:
    """A client of a running Prometheus.

    Args:
        port: The port that it listens on.

    Attributes:
        url: Its address.
    """

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    async def query(self, promql):
        """Returns the result of an instant query: pairs of labels and value, as text."""
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": promql})
        answer = await self._get(path)
        assert answer["status"] == "success", answer
        return [(each["metric"], each["value"][1]) for each in answer["data"]["result"]]

    async def value(self, promql):
        """Returns the only value of a query, or ``None`` without a value."""
        found = await self.query(promql)
        assert len(found) <= 1, found
        return float(found[0][1]) if found else None

    async def until(self, promql):
        """Polls until a query has a result, and returns it."""
        async with asyncio.timeout(WAIT_S):
            while not (found := await self.query(promql)):
                await asyncio.sleep(_ASK_AGAIN_S)
        return found

    async def targets(self):
        """Returns the scraped targets with their health and last error."""
        return (await self._get("/api/v1/targets"))["data"]["activeTargets"]

    async def is_ready(self):
        """Whether it answers."""
        try:
            return (await self._get("/api/v1/status/buildinfo"))["status"] == "success"
        except OSError:
            return False

    async def _get(self, path):
        def ask():
            with urllib.request.urlopen(self.url + path, timeout=WAIT_S) as answer:
                return json.loads(answer.read())

        return await asyncio.to_thread(ask)


def program():
    """Returns the path of an installed Prometheus, or skips the test."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("no prometheus; `apt-get install prometheus` brings it")
    return found


@asynccontextmanager
async def prometheus(folder, jobs, *, labels=None):
    """Runs a Prometheus while the context is open.

    Args:
        folder: A folder for its configuration and data.
        jobs: Ports of ``/metrics`` on this host, by job name.
        labels: Labels of every target, like those that service discovery adds for a pod.
    """
    program()
    folder = Path(folder) / "prometheus"
    folder.mkdir()
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels or {}}],
            }
            for job, port in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    async with prometheus_with(folder / "prometheus.yml", folder) as server:
        yield server


@asynccontextmanager
async def prometheus_with(config, folder):
    """Runs a Prometheus while the context is open.

    Args:
        config: Its configuration.
        folder: A folder for its data and its log.
    """
    binary = program()
    with (folder / "log").open("wb") as log:
        process, server = await _started(binary, config, folder, log)
    try:
        yield server
    finally:
        process.terminate()
        await process.wait()


async def _started(binary, config, folder, log):
    # With port 0 it does not report its port, and another process may take a free port first.
    for _ in range(5):
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
        server = PrometheusServer(port)
        async with asyncio.timeout(WAIT_S):
            while process.returncode is None and not await server.is_ready():
                await asyncio.sleep(_ASK_AGAIN_S)
        if process.returncode is None:
            return process, server
    raise AssertionError((folder / "log").read_text())


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
