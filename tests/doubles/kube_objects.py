"""Small Kubernetes objects for tests, and a wait with a deadline."""

import asyncio

import msgspec

from tidegate.kube.resources import KubeObject, Resource


class ConfigMap(KubeObject, frozen=True, kw_only=True):
    data: dict[str, str] = msgspec.field(default_factory=dict)


CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", ConfigMap)


def config_map(name, **data):
    return {"metadata": {"name": name}, "data": data}


async def eventually(condition, timeout_s=10.0):
    """Waits until a condition holds; raises `TimeoutError` if it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
