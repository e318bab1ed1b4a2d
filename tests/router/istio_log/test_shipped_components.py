"""The shipped Istio objects log what the laptop's mesh logs, as far as Istio can."""

from pathlib import Path

import pytest
import yaml
from envoy.extensions.access_loggers.grpc.v3.als_pb2 import HttpGrpcAccessLogConfig

from tidegate.mesh.telemetry import access_log_config
from tidegate.mesh.telemetry.envoy_config import BY_HEADERS_TAG, TIMEOUT_TAG
from tidegate.router.istio_log.entries import ATTEMPT_HEADER

COMPONENTS = Path(__file__).parents[3] / "mesh/istio/components"


@pytest.fixture(scope="module")
def ours():
    config = HttpGrpcAccessLogConfig()
    access_log_config().typed_config.Unpack(config)
    return config


def read(path):
    return yaml.safe_load((COMPONENTS / path).read_text())


def loggers():
    """What each patch of the EnvoyFilter adds, by its context."""
    patches = read("access-log/tags/envoy-filter.yaml")["spec"]["configPatches"]
    return {
        each["match"]["context"]: each["patch"]["value"]["typed_config"]["access_log"]
        for each in patches
    }


def test_the_provider_logs_the_laptops_headers_and_trailers(ours):
    (provider,) = read("access-log/mesh-config.yaml")["extensionProviders"]
    log = provider["envoyHttpAls"]
    wanted = {*ours.additional_request_headers_to_log, ATTEMPT_HEADER}
    assert set(log["additionalRequestHeadersToLog"]) == wanted
    trailers = set(ours.additional_response_trailers_to_log)
    assert set(log["additionalResponseHeadersToLog"]) == trailers
    assert set(log["additionalResponseTrailersToLog"]) == trailers
    assert log["filterStateObjectsToLog"] == list(ours.common_config.filter_state_objects_to_log)


@pytest.mark.parametrize("context", ["GATEWAY", "SIDECAR_OUTBOUND", "SIDECAR_INBOUND"])
def test_the_filter_logs_the_laptops_headers_trailers_and_tags(ours, context):
    (logger,) = loggers()[context]
    config, common = logger["typed_config"], logger["typed_config"]["common_config"]
    wanted = {*ours.additional_request_headers_to_log, ATTEMPT_HEADER}
    assert set(config["additional_request_headers_to_log"]) == wanted
    trailers = set(ours.additional_response_trailers_to_log)
    assert set(config["additional_response_headers_to_log"]) == trailers
    assert set(config["additional_response_trailers_to_log"]) == trailers
    # istiod puts no metadata of Tidegate's on routes.
    tags = {each.tag: each.value for each in ours.common_config.custom_tags}
    del tags[BY_HEADERS_TAG], tags[TIMEOUT_TAG]
    assert {each["tag"]: each["value"] for each in common["custom_tags"]} == tags
    assert common["buffer_flush_interval"] == "0.1s"


def test_servers_log_only_what_no_callers_proxy_logs():
    assert ["filter" in loggers()[each][0] for each in ("GATEWAY", "SIDECAR_OUTBOUND")] == [
        False,
        False,
    ]
    assert ATTEMPT_HEADER in str(loggers()["SIDECAR_INBOUND"][0]["filter"])
    of_client, of_server = read("access-log/telemetry.yaml")["spec"]["accessLogging"]
    assert "filter" not in of_client
    assert ATTEMPT_HEADER in of_server["filter"]["expression"]
