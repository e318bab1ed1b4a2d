"""What a test cluster says about a machine that lacks a part, and the mesh that it configures."""

import os

import pytest

from cluster import ClusterSettings, missing_parts
from cluster.settings import mesh_config

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start the test cluster")


@as_root
def test_a_machine_without_the_programs_is_told_their_packages(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "install the packages iproute2, iptables, util-linux" in missing_parts()


@as_root
def test_a_machine_without_the_servers_is_told_how_to_build_them(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    missing = missing_parts()
    assert "kube-controller-manager" in missing
    assert "`make servers` builds them" in missing


def test_another_user_is_told_that_the_cluster_needs_root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "needs root" in missing_parts()


def test_the_access_log_of_the_mesh_has_the_trailers_of_tidegate():
    found = mesh_config(ClusterSettings())["extensionProviders"]
    providers = {each["name"]: each for each in found}
    assert providers.keys() == {"tidegate-als", "tidegate-traces"}
    log = providers["tidegate-als"]["envoyHttpAls"]
    assert (log["logName"], log["port"]) == ("tidegate", 9001)
    wanted = {"grpc-status", "tidegate-model", "tidegate-model-version", "tidegate-queue-ms"}
    assert wanted <= set(log["additionalResponseTrailersToLog"])
    # A call that fails at once has its trailers among the headers.
    assert log["additionalResponseHeadersToLog"] == log["additionalResponseTrailersToLog"]


def test_fields_of_the_mesh_configuration_can_be_replaced():
    settings = ClusterSettings(mesh_config={"enableAutoMtls": False})
    assert mesh_config(settings)["enableAutoMtls"] is False
    assert mesh_config(ClusterSettings())["enableAutoMtls"] is True
