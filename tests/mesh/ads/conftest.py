"""A control plane in this process, and proxies that talk to it over real channels."""

from contextlib import asynccontextmanager

import grpc
import pytest
from ads_double import Proxy

from tidegate.chassis import ChassisSettings, running
from tidegate.mesh.ads import AdsServicer, Distribution


class ControlPlane:
    """The application of the tests, with the discovery service only."""

    service_names = (AdsServicer.service_name,)

    def __init__(self, distribution):
        self.distribution = distribution
        self.servicer = AdsServicer(distribution)

    def register(self, server):
        self.servicer.register(server)

    @asynccontextmanager
    async def run(self, health):
        health.set_all(True)
        yield


def settings(port=0):
    return ChassisSettings(grpc_port=port, metrics_port=0, drain_hold_s=0.01, drain_deadline_s=0.1)


@pytest.fixture
def control_plane():
    """Serves a distribution and yields its port."""

    @asynccontextmanager
    async def serve(distribution, port=0):
        async with running(ControlPlane(distribution), settings(port)) as server:
            yield server.grpc_port

    return serve


@pytest.fixture
def distribution():
    return Distribution()


@pytest.fixture
async def ports(distribution):
    """The gRPC port and the metrics port of a control plane."""
    async with running(ControlPlane(distribution), settings()) as server:
        yield server.grpc_port, server.metrics_port


@pytest.fixture
def port(ports):
    return ports[0]


@pytest.fixture
async def connect(port):
    """Opens a proxy's stream to the control plane."""
    channels, proxies = [], []

    def connect(**who):
        # Otherwise channels to one address would share a connection and its flow control.
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        channels.append(channel)
        proxies.append(Proxy(channel, **who))
        return proxies[-1]

    yield connect
    for proxy in proxies:
        proxy.call.cancel()
    for channel in channels:
        await channel.close()


@pytest.fixture
def delta(connect):
    """A proxy that speaks delta."""
    return connect(delta=True)


@pytest.fixture
def sotw(connect):
    """A proxy that speaks state of the world."""
    return connect(delta=False)
