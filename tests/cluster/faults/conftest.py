"""One API server with a proxy before it; each test begins with all traffic at v1."""

import pytest_asyncio
from faulted_rollouts import faulted


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory):
    async with faulted(tmp_path_factory.mktemp("api")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def served(world):
    await world.serve()
    yield world
    world.faulty.mend()
    await world.allow()
