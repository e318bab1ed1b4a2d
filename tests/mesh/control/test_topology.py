"""The workload of an address, for records of requests that come when it has gone."""

import pytest
from mesh_objects import entry, istio, text

from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import MeshSettings
from tidegate.mesh.control.endpoints.topology import Topology

ADDRESS = "127.0.0.1:7001"


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def topology(clock):
    return Topology(MeshSettings(), clock)


def mesh(*workloads):
    """A host whose servers have a version and a port each."""
    host = entry([], workloadSelector={"labels": {"app": "vision"}})
    del host["spec"]["endpoints"]
    made = [
        istio(
            "WorkloadEntry",
            f"vision-{version}",
            {
                "address": "127.0.0.1",
                "ports": {"main": port},
                "labels": {"app": "vision", "version": version},
            },
        )
        for version, port in workloads
    ]
    return parse(text(host, *made), "test")


def version_at(topology, at_s, address=ADDRESS):
    found = topology.workload_at(address, at_s)
    return found and found.version


def test_a_server_that_has_gone_is_known_for_its_last_requests(topology, clock):
    topology.note(mesh(("v1", 7001), ("v2", 7002)))
    clock.now_s = 1010.0
    topology.note(mesh(("v2", 7002)))
    assert version_at(topology, 1009.0) == "v1"
    assert version_at(topology, 1009.0, "127.0.0.1:7002") == "v2"
    assert version_at(topology, 1009.0, "127.0.0.1:9") is None


def test_the_next_server_at_an_address_does_not_get_the_requests_of_the_last(topology, clock):
    topology.note(mesh(("v1", 7001)))
    clock.now_s = 1010.0
    topology.note(mesh())
    clock.now_s = 1020.0
    topology.note(mesh(("v2", 7001)))
    assert [version_at(topology, at_s) for at_s in (999.0, 1015.0, 1021.0)] == ["v1", "v1", "v2"]


def test_another_version_at_an_address_is_told_apart_by_when_a_request_began(topology, clock):
    topology.note(mesh(("v1", 7001)))
    clock.now_s = 1010.0
    topology.note(mesh(("v2", 7001)))
    assert version_at(topology, 1009.9) == "v1"
    assert version_at(topology, 1010.1) == "v2"


def test_the_workloads_of_the_current_change_are_known(topology, clock):
    now, then = mesh(("v1", 7001), ("v2", 7002)), mesh(("v9", 7001), ("v3", 7003))
    topology.note(now)
    clock.now_s = 1010.0
    topology.note(now, then)
    # Where both name a workload at an address, the objects in effect count.
    found = [version_at(topology, 1011.0, f"127.0.0.1:{port}") for port in (7001, 7002, 7003)]
    assert found == ["v1", "v2", "v3"]
    clock.now_s = 1020.0
    topology.note(then)
    assert version_at(topology, 1021.0) == "v9"
    assert version_at(topology, 1012.0) == "v1"


def test_a_request_from_before_the_first_objects_belongs_to_the_present_server(topology):
    topology.note(mesh(("v1", 7001)))
    assert version_at(topology, 1.0) == "v1"


@pytest.mark.long
def test_the_memory_of_addresses_is_bounded(topology, clock):
    for index in range(50):
        clock.now_s += 1
        topology.note(mesh((f"v{index}", 7001)))
    assert version_at(topology, clock.now_s - 3) == "v46"
    assert len(topology._before[ADDRESS]) == 8
    clock.now_s += 7200
    topology.note(mesh(("v50", 7002)))
    clock.now_s += 7200
    topology.note(mesh(("v51", 7003)))
    assert version_at(topology, 1001.0) is None
    topology.note(mesh(*((f"v{port}", port) for port in range(10_000, 21_000))))
    clock.now_s += 1
    topology.note(mesh())
    assert len(topology._before) == 10_000
