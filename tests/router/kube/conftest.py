"""A real API server for all tests of this folder, and a namespace for each test."""

import itertools

import pytest_asyncio
from kubernetes_api import kubernetes_api

from tidegate.kube.client import KubeClient
from tidegate.kube.resources import NAMESPACES

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def api(tmp_path_factory):
    async with kubernetes_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def namespace(api):
    """A namespace of the test's own."""
    name = f"test-{next(_numbers)}"
    async with KubeClient.opened(kubeconfig=api.kubeconfig) as client:
        await client.create(NAMESPACES, {"metadata": {"name": name}})
    return name


@pytest_asyncio.fixture(loop_scope="module")
async def client(api, namespace):
    async with KubeClient.opened(kubeconfig=api.kubeconfig, namespace=namespace) as opened:
        yield opened
