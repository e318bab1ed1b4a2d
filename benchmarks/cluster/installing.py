"""Installs the CRDs of Argo Rollouts, and waits until the API server serves them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import yaml
from controllers import ARGO_SERVER
from objects import ARGO_ROLLOUTS

from tidegate.kube.errors import KubeError
from tidegate.kube.resources import ROLLOUTS, Manifest, Resource

if TYPE_CHECKING:
    from tidegate.kube.client import KubeClient

__all__ = ["CRDS", "install_argo_crds", "until_served"]

CRDS: Final = Resource(
    *("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"),
    Manifest,
    namespaced=False,
)
_SERVED_S: Final = 60.0
_POLL_S: Final = 0.05


async def install_argo_crds(client: KubeClient) -> None:
    """Creates the CRDs of Argo Rollouts, and waits until they are served."""
    for file in sorted(ARGO_SERVER.folder.glob("*-crd.yaml")):
        await client.create(CRDS, yaml.load(file.read_text(), yaml.CSafeLoader))
    await until_served(client, ARGO_ROLLOUTS)


async def until_served(client: KubeClient, resource: Resource[Manifest] = ROLLOUTS) -> None:
    """Waits until the API server serves a resource."""
    async with asyncio.timeout(_SERVED_S):
        while True:
            with contextlib.suppress(KubeError):
                await client.list(resource)
                return
            await asyncio.sleep(_POLL_S)
