"""A real API server that knows Istio's VirtualServices, DestinationRules and EnvoyFilters.

async with istio_api(folder) as api:
    kubeconfig = api.kubeconfig
"""

import asyncio
import contextlib
import json

import yaml
from built_servers import built
from kubernetes_api import kubernetes_api

from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENVOY_FILTERS,
    VIRTUAL_SERVICES,
    Manifest,
    Resource,
)

CRDS = Resource(
    *("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"),
    Manifest,
    namespaced=False,
)
_KINDS = ("virtualservices", "destinationrules", "envoyfilters")
_READY_S = 30.0


def istio_crds(*plurals):
    """Istio's own CRDs, of the commit that is built."""
    text = built("pilot-discovery").with_name("crd-all.gen.yaml").read_text()
    # One load of the whole file takes ten seconds.
    wanted = (
        each for each in text.split("\n---\n") if any(f"plural: {p}" in each for p in plurals)
    )
    return [yaml.load(each, yaml.CSafeLoader) for each in wanted]


@contextlib.asynccontextmanager
async def istio_api(folder):
    async with kubernetes_api(folder) as api:
        async with KubeClient.opened(kubeconfig=api.kubeconfig) as client:
            for each in istio_crds(*_KINDS):
                await client.create(CRDS, json.loads(json.dumps(each)))
            async with asyncio.timeout(_READY_S):
                for resource in (VIRTUAL_SERVICES, DESTINATION_RULES, ENVOY_FILTERS):
                    await _served(client, resource)
        yield api


async def _served(client, resource):
    while True:
        try:
            await client.list(resource)
        except KubeError:
            await asyncio.sleep(0.05)
        else:
            return
