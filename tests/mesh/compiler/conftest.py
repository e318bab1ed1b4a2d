"""Fixtures: one Envoy for each module of tests, and objects for it."""

import pytest
import pytest_asyncio
from envoy_harness import EnvoyHarness, XdsClient
from mesh_objects import entry, gateway, rule, text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """A real Envoy before three gRPC servers, v1, v2 and v3, and an HTTP server."""
    async with EnvoyHarness.running(tmp_path_factory.mktemp("envoy")) as harness:
        yield harness


@pytest.fixture
def vision(mesh):
    """Objects of a host ``vision`` with the three servers as subsets, plus those of the test."""

    def with_(*objects, policy=None, annotations=None, subsets=("v1", "v2", "v3")):
        ports = {name: backend.port for name, backend in mesh.backends.items()}
        destination_rule = rule(policy, subsets, annotations=annotations)
        return text(gateway(mesh.port), entry(ports), destination_rule, *objects)

    return with_


@pytest_asyncio.fixture(loop_scope="module")
async def client(mesh):
    """A new gRPC client, without state of earlier tests."""
    async with XdsClient.running(mesh.ads_port) as xds_client:
        yield xds_client
