"""Every panel of the dashboards has data after some traffic, on a laptop's mesh and a cluster."""

import asyncio
import contextlib
import threading
import urllib.request

import pytest
import yaml
from chat_load import ChatLoad
from dashboard_panels import CLUSTER, GPU, LAPTOP, all_panels_have_data
from laptop_mesh import CAT, LaptopMesh
from model_cluster import NAMESPACE, OWN, PORTS, ModelCluster, has_models
from prometheus_server import prometheus_with
from steady_load import SteadyLoad, photographs

from cluster import TestCluster, missing_parts
from cluster.manifests import manifests

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.llm,
    pytest.mark.long,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        not (has_models() and has_models("llm")),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]

RATE = 8.0
WITHIN_S = 900.0
# One rollout that has ended, and one that goes on.
ENDED = {"strategy": {"manual": {"weights": [10]}}}
GOING_ON = {
    "strategy": {"canary": {"ramp": {"harmBudget": 1000}}},
    "objectives": [
        {"signal": "grpcFailures", "tolerate": "1.2x", "margin": "0.01%"},
        {"signal": "latency", "quantile": "50%", "tolerate": "100x"},
    ],
}


def rollout_text(name, spec):
    return yaml.safe_dump(
        {
            "apiVersion": "tidegate.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"host": "vision", "baseline": "v1", "candidate": "v2"} | spec,
        }
    )


@contextlib.contextmanager
def browsing(port):
    """Calls the gateway once a second from a thread of its own."""
    stopped = threading.Event()

    def call():
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/images:classify",
            data=CAT.read_bytes(),
            headers={"content-type": "image/jpeg"},
        )
        while not stopped.wait(1.0):
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as got:
                got.read()

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


async def test_every_panel_has_data_on_a_laptop(tmp_path):
    mesh = LaptopMesh(tmp_path, llm=True, gateway=True)
    for name, spec in (("ended", ENDED), ("going-on", GOING_ON)):
        (tmp_path / f"{name}.yaml").write_text(rollout_text(name, spec))
    try:
        await asyncio.to_thread(mesh.tidegate, "up", "--detach")
        async with prometheus_with(tmp_path / ".tidegate/prometheus.yml", tmp_path) as scraper:
            with (
                SteadyLoad(mesh.vision_port, RATE, photographs()),
                ChatLoad(mesh.llm_port, at_once=1),
                browsing(mesh.gateway_port),
            ):
                # Prometheus must see counters before they grow.
                await scraper.until('count_over_time(up{job="router"}[1m]) >= 2')
                await asyncio.to_thread(mesh.tidegate, "rollout", "apply", "-f", "ended.yaml")
                await scraper.until('tidegate_rollout_phase{phase="progressing",name="ended"}')
                await asyncio.to_thread(mesh.tidegate, "rollout", "abort", "ended")
                await scraper.until('tidegate_rollout_phase{phase="aborted",name="ended"}')
                await asyncio.to_thread(mesh.tidegate, "rollout", "apply", "-f", "going-on.yaml")
                await all_panels_have_data(scraper.url, {GPU, CLUSTER}, WITHIN_S)
    finally:
        await asyncio.to_thread(mesh.tidegate, "down")


# The ports of metrics: those of our own programs, and of an Envoy.
OURS, ENVOY = 9090, 15090
SCRAPED = (
    (NAMESPACE, "app=vision", OURS),
    (NAMESPACE, "app=llm", OURS),
    (OWN, "app=tidegate-router", OURS),
    ("istio-ingress", "istio=ingressgateway", ENVOY),
)


async def scrape_config(cluster):
    """The configuration of a Prometheus that scrapes Pods as the PodMonitors ask for."""
    jobs = []
    for namespace, selector, port in SCRAPED:
        targets = []
        for pod in await cluster.items("v1", "Pod", namespace, selector=selector):
            metadata = pod["metadata"]
            labels = {each: metadata["labels"].get(each, "") for each in ("app", "version")}
            address = await cluster.forward(namespace, f"pod/{metadata['name']}", port)
            targets.append({"targets": [address], "labels": labels | {"pod": metadata["name"]}})
        assert targets, selector
        jobs.append(
            {
                "job_name": selector.partition("=")[2],
                "metrics_path": "/metrics" if port == OURS else "/stats/prometheus",
                "honor_labels": True,
                "static_configs": targets,
            }
        )
    return yaml.safe_dump({"global": {"scrape_interval": "5s"}, "scrape_configs": jobs})


@pytest.mark.cluster
async def test_every_panel_has_data_on_a_cluster(tmp_path):
    if missing := missing_parts():
        pytest.skip(missing)
    async with (
        TestCluster.running(tmp_path / "cluster") as cluster,
        ModelCluster.running(cluster) as models,
    ):
        await cluster.apply(*manifests("llm"))
        await cluster.deployed(NAMESPACE, "llm-v1", timeout_s=1200.0)
        address = await cluster.forward("istio-ingress", "istio-ingressgateway", PORTS["llm"])
        config = tmp_path / "prometheus.yml"
        config.write_text(await scrape_config(cluster))
        await models.start_over("patch")
        async with prometheus_with(config, tmp_path) as scraper:
            with (
                SteadyLoad(models.port, RATE, photographs()),
                ChatLoad(int(address.rpartition(":")[2]), at_once=1),
            ):
                await scraper.until('count_over_time(up{job="tidegate-router"}[1m]) >= 2')
                await models.apply("ended", **ENDED)
                await models.follow("ended", "Progressing")
                await models.command("ended", "abort")
                await models.follow("ended")
                await models.apply("going-on", **GOING_ON)
                await all_panels_have_data(scraper.url, {GPU, LAPTOP}, WITHIN_S)
