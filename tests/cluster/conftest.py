"""One test cluster for all tests that can share it."""

import pytest

from cluster import TestCluster, missing_parts


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory):
    """A cluster for tests that keep to namespaces of their own and break no server."""
    if missing := missing_parts():
        pytest.skip(missing)
    with TestCluster.started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
