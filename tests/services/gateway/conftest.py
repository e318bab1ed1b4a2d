"""The real vision server and the real gateway, one of each for all tests."""

import asyncio
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
import uvloop
from gateway_server import ServedGateway, gateway
from vision_server import NETWORK, VisionServer, built_models, serving, written_photographs

VERSION = "1-int8"
MAX_IMAGES = 4
MAX_BODY_BYTES = 16 << 20


def pytest_asyncio_loop_factories(config, item):
    """Runs the tests on the event loop that the gateway itself runs on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True, slots=True)
class Front:
    """A gateway, the vision server behind it, and a client of the gateway."""

    gateway: ServedGateway
    vision: VisionServer
    http: httpx.AsyncClient

    @property
    def url(self):
        return self.gateway.base_url


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Photographs as JPEG files by name, with the correct classes of each."""
    return written_photographs(tmp_path_factory.mktemp("photographs"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vision_front(tmp_path_factory):
    """A gateway in front of a vision server of one version.

    Its batches have one image, so that the numbers do not depend on what else runs.
    """
    models = built_models()
    root = tmp_path_factory.mktemp("models")
    (root / NETWORK).mkdir()
    (root / NETWORK / VERSION).symlink_to(models / NETWORK / VERSION)
    async with (
        serving(root, batch_sizes=[1]) as vision,
        gateway(
            vision=[vision.address],
            max_images=MAX_IMAGES,
            max_body_bytes=MAX_BODY_BYTES,
            model_control=True,
        ) as served,
        httpx.AsyncClient(base_url=served.base_url, timeout=60) as http,
    ):
        yield Front(served, vision, http)


@pytest.fixture(scope="session")
def run():
    """Runs a program; returns what it writes."""

    async def output_of(*command, stdin=None):
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(90):
            output, errors = await process.communicate(stdin)
        assert process.returncode == 0, errors.decode()
        return output

    return output_of
