"""``--trace``: the spans of a command's calls arrive at a collector."""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from double_server import double_server
from otlp_collectors import grpc_collector, http_collector

PROGRAM = "from tidegate.cli.main import main; main()"
WITHOUT_SDK = (
    "import sys; sys.modules['opentelemetry.sdk.resources'] = None\n"
    "from tidegate.cli.main import main; main()"
)
NOTHING_IMPORTED = (
    "import sys\nfrom tidegate.cli.main import main\n"
    "try: main()\nfinally: assert 'opentelemetry' not in sys.modules"
)


@asynccontextmanager
async def collecting():
    async with grpc_collector() as (received, address):
        yield received, f"http://{address}"


@pytest.fixture
def server():
    with double_server() as double:
        yield double


@pytest.fixture
def tidegate(tmp_path):
    """Runs the command line in a thread, because the collector is in this process."""

    def run(*arguments, program=PROGRAM, stdin=b"", env=None):
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=env,
            timeout=60,
            check=False,
        )

    return lambda *arguments, **options: asyncio.to_thread(run, *arguments, **options)


async def test_each_call_of_classify_is_a_trace_of_its_own(tidegate, server):
    async with collecting() as (collector, url):
        arguments = ("classify", "-", "--repeat", "3", "--vision", server.address, "--trace", url)
        done = await tidegate(*arguments, stdin=b"jpeg")
    assert (done.returncode, done.stderr) == (0, b"")
    assert [span.name for span in collector.spans] == [
        "tidegate.vision.v1.VisionService/Classify"
    ] * 3
    assert len({span.trace_id for span in collector.spans}) == 3
    assert collector.services == {"tidegate-cli"}
    sent = {each["traceparent"].split("-")[1] for each in server.script.metadata}
    assert sent == {span.trace_id.hex() for span in collector.spans}


async def test_chat_has_a_span_and_the_collector_may_come_from_the_environment(tidegate, server):
    async with collecting() as (collector, url):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "notebook"}
        done = await tidegate("chat", "hello", "--llm", server.address, env=env)
    assert (done.returncode, done.stdout) == (0, b"Paris.\n")
    assert [span.name for span in collector.spans] == ["tidegate.llm.v1.LlmService/Chat"]
    assert collector.services == {"notebook"}


async def test_span_of_a_failed_call_is_sent_too(tidegate, server):
    async with collecting() as (collector, url):
        arguments = ("classify", "-", "--vision", server.address, "--trace", url)
        done = await tidegate(*arguments, stdin=b"not an image")
    assert done.returncode == 1
    (span,) = collector.spans
    assert span.status.code == 2


async def test_command_succeeds_without_its_collector_and_says_so(tidegate, server):
    url = "http://127.0.0.1:9"
    arguments = ("classify", "-", "--vision", server.address, "--trace", url)
    done = await tidegate(*arguments, stdin=b"jpeg")
    assert done.returncode == 0
    assert b"tabby" in done.stdout
    assert done.stderr.decode() == f"spans not sent to {url}: 1\n"


async def test_base_install_works_and_names_the_missing_package(tidegate, server):
    arguments = ("classify", "-", "--vision", server.address, "--trace", "http://127.0.0.1:9")
    done = await tidegate(*arguments, program=WITHOUT_SDK, stdin=b"jpeg")
    assert done.returncode == 0
    assert b"tabby" in done.stdout
    assert b"pip install 'tidegate[server]'" in done.stderr
    assert "traceparent" not in server.script.metadata[0]


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:4317", "host/path"])
async def test_invalid_collector_url_is_rejected(tidegate, server, url):
    arguments = ("classify", "-", "--vision", server.address, "--trace", url)
    done = await tidegate(*arguments, stdin=b"jpeg")
    assert done.returncode == 2
    assert b"is not a collector's URL" in done.stderr


@pytest.mark.parametrize("protocol", ["OTEL_EXPORTER_OTLP_PROTOCOL", "TIDEGATE_OTLP_PROTOCOL"])
async def test_spans_are_sent_over_http_if_the_variables_say_so(tidegate, server, protocol):
    with http_collector() as (received, address):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}/", protocol: "http/protobuf"}
        done = await tidegate("chat", "hello", "--llm", server.address, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert received.paths == ["/v1/traces"]
    assert [span.name for span in received.spans] == ["tidegate.llm.v1.LlmService/Chat"]


async def test_collector_without_a_scheme_has_the_sdks_meaning(tidegate, server):
    async with collecting() as (collector, url):
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url.removeprefix("http://"),
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
        }
        await tidegate("chat", "hello", "--llm", server.address, env=env)
    assert len(collector.spans) == 1


@pytest.mark.parametrize(
    "off",
    [
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
    ],
    ids=str,
)
async def test_spans_that_the_variables_turn_off_are_not_sent(tidegate, server, off):
    async with collecting() as (collector, url):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **off}
        done = await tidegate("chat", "hello", "--llm", server.address, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert collector.spans == []


async def test_flag_wins_over_the_variables(tidegate, server):
    async with collecting() as (collector, url):
        env = {"OTEL_TRACES_EXPORTER": "none"}
        await tidegate("chat", "hello", "--llm", server.address, "--trace", url, env=env)
    assert len(collector.spans) == 1


async def test_flag_with_a_disabled_sdk_gives_a_warning(tidegate, server):
    env = {"OTEL_SDK_DISABLED": "true"}
    arguments = ("chat", "hello", "--llm", server.address, "--trace", "http://127.0.0.1:9")
    done = await tidegate(*arguments, env=env)
    assert done.returncode == 0
    assert done.stderr == b"no spans are recorded: OTEL_SDK_DISABLED is set\n"


async def test_without_a_collector_nothing_is_imported_or_sent(tidegate, server):
    arguments = ("classify", "-", "--vision", server.address)
    done = await tidegate(*arguments, program=NOTHING_IMPORTED, stdin=b"jpeg")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "traceparent" not in server.script.metadata[0]
