"""A real Prometheus that scrapes what a test names and is asked in PromQL.

    async with prometheus(tmp_path, {"job": port}) as server:
        await server.until("up == 1")
        assert await server.value("sum(rate(requests_total[1m]))") > 0

It scrapes twice a second. No test asserts when something was scraped: `until` asks again and again.
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
    """Asks a running Prometheus.

    Args:
        port: where it listens.
    """

    def __init__(self, port):
        self._url = f"http://127.0.0.1:{port}"

    async def query(self, promql):
        """The answer to an instant query: values as text by label sets, without metric names."""
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": promql})
        answer = await self._get(path)
        assert answer["status"] == "success", answer
        return [(each["metric"], each["value"][1]) for each in answer["data"]["result"]]

    async def value(self, promql):
        """The one value of a query that has one; ``None`` where it has none."""
        found = await self.query(promql)
        assert len(found) <= 1, found
        return float(found[0][1]) if found else None

    async def until(self, promql):
        """Asks until a query has an answer, and gives that."""
        async with asyncio.timeout(WAIT_S):
            while not (found := await self.query(promql)):
                await asyncio.sleep(_ASK_AGAIN_S)
        return found

    async def targets(self):
        """What it scrapes: addresses, health and the last error."""
        return (await self._get("/api/v1/targets"))["data"]["activeTargets"]

    async def is_ready(self):
        """Whether it answers."""
        try:
            return (await self._get("/api/v1/status/buildinfo"))["status"] == "success"
        except OSError:
            return False

    async def _get(self, path):
        def ask():
            with urllib.request.urlopen(self._url + path, timeout=WAIT_S) as answer:
                return json.loads(answer.read())

        return await asyncio.to_thread(ask)


def program():
    """Path of the Prometheus of this machine; without one the test is skipped."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("no prometheus; `apt-get install prometheus` brings it")
    return found


@asynccontextmanager
async def prometheus(folder, jobs, *, labels=None):
    """Runs a Prometheus while the context is open.

    Args:
        folder: for its configuration and data.
        jobs: ports of ``/metrics`` on this host, by the job's name.
        labels: labels that every target has, as service discovery adds those of a pod.
    """
    binary = program()
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
    with (folder / "log").open("wb") as log:
        process, server = await _started(binary, folder, log)
    try:
        yield server
    finally:
        process.terminate()
        await process.wait()


async def _started(binary, folder, log):
    # It does not say which port it took where it is given 0; another may take a free one first.
    for _ in range(5):
        port = _free_port()
        process = await asyncio.create_subprocess_exec(
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
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
