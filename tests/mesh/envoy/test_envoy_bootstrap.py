"""The bootstrap: its content, and that a real Envoy accepts it."""

import ssl
import subprocess
from pathlib import Path

import pytest
from google.protobuf import json_format

from tidegate.mesh.envoy.addresses import Address, Collector
from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.envoy.bootstrap import (
    ACCESS_LOG_CLUSTER,
    ADS_CLUSTER,
    TRACES_CLUSTER,
    EnvoySettings,
    bootstrap,
)
from tidegate.mesh.telemetry import envoy_config


def settings(traces: str = "http://127.0.0.1:15010", **more: object) -> EnvoySettings:
    return EnvoySettings(
        node_id="ingress",
        controller=Address("127.0.0.1", 15010),
        traces=Collector.parse(traces),
        ca_file=ssl.get_default_verify_paths().cafile or "",
        **more,
    )


def clusters_of(made) -> dict[str, dict]:
    found = json_format.MessageToDict(made)["staticResources"]["clusters"]
    return {each["name"]: each for each in found}


@pytest.mark.parametrize(
    "traces",
    ["http://127.0.0.1:15010", "http://[::1]:4317", "http://jaeger:4317", "https://jaeger:4317"],
)
def test_envoy_accepts_it(tmp_path, traces):
    file = tmp_path / "bootstrap.json"
    file.write_text(json_format.MessageToJson(bootstrap(settings(traces))))
    command = [find_envoy(), "--mode", "validate", "--disable-hot-restart", "--config-path", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout


def test_envoy_rejects_an_invalid_bootstrap(tmp_path):
    """Shows that the test above can fail."""
    file = tmp_path / "bootstrap.json"
    made = bootstrap(settings())
    made.static_resources.clusters[0].name = ""
    file.write_text(json_format.MessageToJson(made))
    command = [find_envoy(), "--mode", "validate", "--disable-hot-restart", "--config-path", file]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def test_bootstrap_has_the_clusters_that_listeners_name():
    assert set(clusters_of(bootstrap(settings()))) == {
        ADS_CLUSTER,
        envoy_config.ACCESS_LOG_CLUSTER,
        envoy_config.TRACES_CLUSTER,
    }


def test_everything_but_the_users_spans_goes_to_the_controller():
    made = clusters_of(bootstrap(settings("https://collector.example:4317")))
    ports = {
        name: each["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]["address"][
            "socketAddress"
        ]["portValue"]
        for name, each in made.items()
    }
    assert ports == {ADS_CLUSTER: 15010, ACCESS_LOG_CLUSTER: 15010, TRACES_CLUSTER: 4317}
    assert made[TRACES_CLUSTER]["type"] == "STRICT_DNS"
    assert "transportSocket" in made[TRACES_CLUSTER]
    assert "transportSocket" not in made[ADS_CLUSTER]


def test_discovery_is_delta_and_reconnects_within_a_second():
    made = json_format.MessageToDict(bootstrap(settings()))
    ads = made["dynamicResources"]["adsConfig"]
    assert ads["apiType"] == "DELTA_GRPC"
    backoff = ads["grpcServices"][0]["envoyGrpc"]["retryPolicy"]["retryBackOff"]
    assert float(backoff["maxInterval"].rstrip("s")) < 1
    assert made["node"]["metadata"] == {"TIDEGATE_PROXY": "ingress"}
    assert made["clusterManager"]["loadStatsConfig"]["apiType"] == "GRPC"


def test_the_admin_interface_is_for_this_host_only():
    made = json_format.MessageToDict(bootstrap(settings(admin_port=15000)))
    assert made["admin"]["address"] == {
        "socketAddress": {"address": "127.0.0.1", "portValue": 15000}
    }


@pytest.mark.parametrize("text", ["127.0.0.1", "http://h:1", "h:x", "a@h:1", "h:1/p", ":1", ""])
def test_invalid_address_is_rejected(text):
    with pytest.raises(ValueError, match=r".+"):
        Address.parse(text)


def test_addresses_and_urls_are_read():
    assert Address.parse("[::1]:80") == Address("::1", 80)
    assert Collector.parse("https://h") == Collector(Address("h", 443), tls=True)
    with pytest.raises(ValueError, match="is not http://HOST:PORT"):
        Collector.parse("h:4317")


def test_bootstrap_holds_no_path_of_this_machine():
    text = json_format.MessageToJson(bootstrap(settings()))
    assert str(Path.home()) not in text
