"""One API server with Istio's CRDs for all tests of traffic, and a host for each test."""

import itertools

import pytest_asyncio
from cluster_host import ClusterHost
from istio_api import istio_api

from tidegate.kube.client import KubeClient
from tidegate.kube.resources import NAMESPACES

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def api(tmp_path_factory):
    async with istio_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def client(api):
    async with KubeClient.opened(kubeconfig=api.kubeconfig) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def bare_host(client):
    """A Service with three Ready endpoints of v1 and of v2, in a namespace of the test's own."""
    name = f"traffic-{next(_numbers)}"
    await client.create(NAMESPACES, {"metadata": {"name": name}})
    found = ClusterHost(client, name)
    await found.make(ready={"v1": 3, "v2": 3})
    return found
