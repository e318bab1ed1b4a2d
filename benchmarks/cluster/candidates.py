"""Measures what bad candidates do before each controller rolls them back, under the same load.

One gateway, programmed by istiod, serves a host of each rival. A candidate is begun on all hosts at
the same time. From its first call on, the callers of each host count what it does to them.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml
from callers import Callers
from controllers import Argo, free_port
from harm import Harm, harm_of
from installing import install_argo_crds
from rivals import BASE, NAMESPACE, PORT, SLOW_S, Rival, TidegateHost, argo_hosts, gateway

from cluster import ClusterSettings, TestCluster
from cluster.manifests import manifests, router_manifests
from tidegate.kube.client import KubeClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rich.console import Console

__all__ = ["SCENARIOS", "Run", "Scenario", "measure_candidates"]

_STATS_PORT: Final = 15090
_START_S: Final = 180.0
_POLL_S: Final = 0.2
_CALM_S: Final = 8.0
_TAIL_S: Final = 3.0
# Istio's proxies keep few statistics unless they are told.
_STATS: Final = {"proxyStatsMatcher": {"inclusionRegexps": [r"cluster\.outbound.*"]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A candidate.

    Attributes:
        title: Its name in the report.
        faults: The options of its server.
        after_s: How long it is good.
        is_bad: Whether it should be rolled back.
        incident_s: From when to when both versions fail more calls; None for never.
    """

    title: str
    faults: tuple[str, ...] = ()
    after_s: float = 0.0
    is_bad: bool = True
    incident_s: tuple[float, float] | None = None


SCENARIOS: Final = (
    Scenario(title="5 % fail", faults=("--fail=0.05",)),
    Scenario(title="1 % fail", faults=("--fail=0.01",)),
    Scenario(title="+100 ms", faults=("--delay-s=0.1",)),
    Scenario(title="5 % fail, after 40 s", faults=("--fail=0.05", "--after-s=40"), after_s=40.0),
    Scenario(title="healthy", is_bad=False),
    Scenario(
        title="healthy, 5 % of both versions fail for 30 s", is_bad=False, incident_s=(15.0, 45.0)
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One candidate on one host.

    Attributes:
        scenario: The candidate.
        controller: Who should roll it back.
        aborted: Whether that happened in time.
        why: What the controller said about it.
        harm: What it did to its callers.
    """

    scenario: str
    controller: str
    aborted: bool
    why: str
    harm: Harm


async def measure_candidates(
    folder: Path,
    *,
    repeats: int,
    hold_s: float,
    rate: float,
    scenarios: tuple[Scenario, ...],
    console: Console,
) -> list[Run]:
    """Runs every candidate on the host of every rival.

    Args:
        folder: A folder for the cluster.
        repeats: How often.
        hold_s: After how long a candidate that nobody rolls back is taken back.
        rate: Calls a second of each host.
        scenarios: The candidates.
        console: Shows what happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = ClusterSettings(
        namespaces=(NAMESPACE, "tidegate-system", "istio-ingress", "argo-rollouts")
    )
    async with (
        TestCluster.running(folder / "cluster", settings) as cluster,
        KubeClient.opened(kubeconfig=cluster.kubeconfig, user_agent="benchmark") as client,
    ):
        await install_argo_crds(client)
        port = await _start(cluster)
        await gateway(client)
        address = await _stats_address(cluster)
        async with _prometheus(folder, address) as prometheus:
            incident = folder / "incident"
            rivals: list[Rival] = [
                TidegateHost(cluster, client, "ours", incident),
                *argo_hosts(cluster, client, prometheus, incident),
            ]
            argo = ArgoEverywhere(cluster.kubeconfig, folder)
            argo.start()
            try:
                for each in rivals:
                    with console.status(f"the host of {each.title}"):
                        await each.install()
                with Callers(port, [each.authority for each in rivals], rate) as callers:
                    await _until_served(callers)
                    bench = CandidateBench(rivals, callers, incident, hold_s, console)
                    return await bench.run_all(scenarios, repeats)
            finally:
                argo.kill()


class ArgoEverywhere(Argo):
    """Argo Rollouts for the namespace of the hosts."""

    namespace = NAMESPACE


class CandidateBench:
    """Runs candidates on the hosts of all rivals.

    Args:
        rivals: The rivals.
        callers: The load on their hosts.
        incident: The file that makes all servers fail more calls.
        hold_s: After how long a candidate that nobody rolls back is taken back.
        console: Shows what happens.
    """

    def __init__(
        self,
        rivals: list[Rival],
        callers: Callers,
        incident: Path,
        hold_s: float,
        console: Console,
    ) -> None:
        self._rivals = rivals
        self._callers = callers
        self._incident = incident
        self._hold_s = hold_s
        self._console = console

    async def run_all(self, scenarios: tuple[Scenario, ...], repeats: int) -> list[Run]:
        """Runs each candidate so often."""
        found: list[Run] = []
        callers = self._callers
        # A host that comes up loses calls, which no controller has lost.
        early = {each.name: len(callers.errors(each.authority)) for each in self._rivals}
        for repeat in range(repeats):
            for number, scenario in enumerate(scenarios):
                with self._console.status(f"{scenario.title}, {repeat + 1} of {repeats}"):
                    runs = await self._run(scenario, f"c{repeat}-{number}")
                for each in runs:
                    self._console.print(f"   {each.scenario}: {each.controller}: {asdict(each)}")
                found += runs
        for rival in self._rivals:
            for error in dict.fromkeys(callers.errors(rival.authority)[early[rival.name] :]):
                self._console.print(f"   lost by {rival.title}: {error}")
        return found

    async def _run(self, scenario: Scenario, candidate: str) -> list[Run]:
        """Runs one candidate on all hosts at the same time."""
        rivals, callers = self._rivals, self._callers
        await asyncio.gather(*(each.prepare(candidate, scenario.faults) for each in rivals))
        await asyncio.sleep(_CALM_S)
        marks = callers.marks()
        await asyncio.gather(*(each.begin(candidate, scenario.faults) for each in rivals))
        incident = asyncio.create_task(self._fail_for_a_while(scenario))
        waiting = await self._until_aborted(self._hold_s + scenario.after_s)
        await incident
        why = {each.name: await each.why() for each in rivals}
        await asyncio.gather(*(each.reset() for each in rivals))
        await asyncio.sleep(_TAIL_S)
        return [
            Run(
                scenario=scenario.title,
                controller=each.title,
                aborted=each.name not in waiting,
                why=why[each.name],
                harm=harm_of(
                    callers.calls(each.authority, marks[each.authority]),
                    candidate,
                    base=BASE,
                    slow_s=SLOW_S,
                    bad_after_s=scenario.after_s,
                ),
            )
            for each in rivals
        ]

    async def _until_aborted(self, hold_s: float) -> set[str]:
        """Waits until all have rolled back, or for so long; returns who has not."""
        deadline_s = time.monotonic() + hold_s
        waiting = {each.name: each for each in self._rivals}
        while waiting and time.monotonic() < deadline_s:
            for name, rival in list(waiting.items()):
                if await rival.aborted():
                    del waiting[name]
            await asyncio.sleep(_POLL_S)
        return set(waiting)

    async def _fail_for_a_while(self, scenario: Scenario) -> None:
        if scenario.incident_s is None:
            return
        from_s, to_s = scenario.incident_s
        await asyncio.sleep(from_s)
        self._incident.touch()
        await asyncio.sleep(to_s - from_s)
        self._incident.unlink()


async def _start(cluster: TestCluster) -> int:
    """Starts the gateway and the router; returns the gateway's loopback port."""
    ingress = manifests("ingress")
    for each in ingress:
        if each["kind"] == "Deployment":
            annotations = each["spec"]["template"]["metadata"]["annotations"]
            annotations["proxy.istio.io/config"] = yaml.safe_dump(_STATS)
    await cluster.apply(*ingress, *router_manifests())
    await cluster.deployed("istio-ingress", "istio-ingressgateway", timeout_s=_START_S)
    await cluster.deployed("tidegate-system", "tidegate-router", timeout_s=_START_S)
    address = await cluster.forward("istio-ingress", "istio-ingressgateway", PORT)
    return int(address.rpartition(":")[2])


async def _stats_address(cluster: TestCluster) -> str:
    (pod,) = await cluster.items("v1", "Pod", "istio-ingress")
    name = pod["metadata"]["name"]
    return await cluster.forward("istio-ingress", f"pod/{name}", _STATS_PORT)


async def _until_served(callers: Callers) -> None:
    """Waits until every host has answered once."""
    deadline_s = time.monotonic() + _START_S
    for host in callers.marks():
        while not any(each.ok for each in callers.calls(host, 0)[-20:]):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{host} does not answer: {callers.errors(host)}")
            await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def _prometheus(folder: Path, address: str) -> AsyncIterator[str]:
    """Runs a Prometheus that scrapes the gateway, and gives its URL."""
    program = shutil.which("prometheus")
    assert program is not None
    config: dict[str, Any] = {
        "global": {"scrape_interval": "5s"},
        "scrape_configs": [
            {
                "job_name": "gateway",
                "metrics_path": "/stats/prometheus",
                "static_configs": [{"targets": [address]}],
            }
        ],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    listens = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
            [
                *(program, f"--config.file={file}", f"--web.listen-address={listens}"),
                f"--storage.tsdb.path={folder / 'prometheus'}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{listens}"
    finally:
        process.terminate()
        process.wait()
