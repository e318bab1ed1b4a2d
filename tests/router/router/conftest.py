import pytest
from router_harness import FastClock, Router


@pytest.fixture
def router(tmp_path):
    return Router(tmp_path / "rollouts.sqlite", FastClock())
