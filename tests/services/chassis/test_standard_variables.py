"""OpenTelemetry's variables, seen in the spans that a real collector receives."""

import os

import grpc
import pytest
from otlp_collectors import grpc_collector, http_collector

CALLS = 40


@pytest.fixture
def run(start_process, echo_client):
    """Runs a server with variables, calls it and ends it; then its spans are exported."""

    async def run(*flags, **variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        process, ports = await start_process(*flags, env=environment | variables)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
            client = echo_client(channel)
            for _ in range(CALLS):
                await client.call("echo", "ok")
        process.terminate()
        await process.communicate()
        assert process.returncode == 0

    return run


async def test_resource_has_the_attributes_of_the_variables(run):
    async with grpc_collector() as (received, address):
        await run(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}",
            OTEL_SERVICE_NAME="cats",
            OTEL_RESOURCE_ATTRIBUTES="service.name=dogs,service.version=7,team=pets,"
            "deployment.environment.name=prod,service.instance.id=pod-1",
        )
    resource = received.resources[0]
    assert {
        "service.name": "cats",
        "service.version": "7",
        "deployment.environment.name": "prod",
        "service.instance.id": "pod-1",
        "team": "pets",
    }.items() <= resource.items()
    assert len(received.spans) == CALLS


async def test_flags_beat_the_variables(run):
    async with grpc_collector() as (received, address):
        await run(
            f"--otlp-endpoint=http://{address}",
            "--service-name=flag",
            "--traces-exporter=otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
            OTEL_SERVICE_NAME="cats",
            OTEL_TRACES_EXPORTER="none",
        )
    assert received.resources[0]["service.name"] == "flag"


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "/v1/traces"),
        pytest.param("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/", marks=pytest.mark.long),
        pytest.param("TIDEGATE_OTLP_ENDPOINT", "/v1/traces", marks=pytest.mark.long),
    ],
)
async def test_spans_are_exported_over_http(run, variable, path):
    with http_collector() as (received, address):
        await run(**{variable: f"http://{address}", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
    assert set(received.paths) == {path}
    assert len(received.spans) == CALLS


async def test_endpoint_without_a_scheme_means_what_it_means_to_the_sdk(run):
    async with grpc_collector() as (received, address):
        await run(OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_EXPORTER_OTLP_INSECURE="true")
    assert len(received.spans) == CALLS


@pytest.mark.parametrize(
    "off", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}], ids=str
)
async def test_disabled_spans_are_not_exported(run, off):
    async with grpc_collector() as (received, address):
        await run(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}", **off)
    assert received.spans == []


@pytest.mark.parametrize(
    ("sampler", "share", "expected"),
    [
        ("always_off", "", {0}),
        pytest.param("parentbased_always_off", "", {0}, marks=pytest.mark.long),
        pytest.param("always_on", "", {CALLS}, marks=pytest.mark.long),
        ("traceidratio", "0.5", set(range(1, CALLS))),
    ],
)
async def test_sampler_decides_which_traces_are_recorded(run, sampler, share, expected):
    async with grpc_collector() as (received, address):
        await run(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}",
            OTEL_TRACES_SAMPLER=sampler,
            OTEL_TRACES_SAMPLER_ARG=share,
        )
    assert len(received.spans) in expected
