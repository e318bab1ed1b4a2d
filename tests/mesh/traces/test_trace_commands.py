"""``tidegate trace`` as a program, with the controller's API and with other Jaegers."""

import asyncio
import json
import subprocess
import sys

import pytest
from aiohttp import web
from otlp_spans import request, span
from typer.testing import CliRunner

from tidegate.cli.traces import commands

PROGRAM = [sys.executable, "-c", "from tidegate.cli.main import main; main()"]


@pytest.fixture
def tidegate():
    """Runs the command line in a thread, because its servers run in this process."""

    def run(*arguments):
        return subprocess.run([*PROGRAM, *arguments], capture_output=True, timeout=60, check=False)

    return lambda *arguments: asyncio.to_thread(run, *arguments)


@pytest.fixture
async def traces(collector):
    """A collector with three traces."""
    traces = await collector()
    await traces.stub.Export(request(span(0xA1, 1, name="call", duration_ms=12), service="client"))
    await traces.stub.Export(request(span(0xA1, 2, parent=1, start_ms=1, failed=True)))
    await traces.stub.Export(request(span(0xA2, 1, start_ms=20, name="idle")))
    await traces.stub.Export(request(span(0xB << 120, 1, start_ms=40, name="late"), service="llm"))
    return traces


@pytest.fixture
async def jaeger(collector):
    """Serves JSON at some paths, and the page of Jaeger's UI at all others, as Jaeger does."""
    runners = []

    async def serve(answers):
        async def answer(asked):
            found = answers.get(asked.path)
            if found is None:
                return web.Response(text="<!doctype html>", content_type="text/html")
            return web.json_response(found)

        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        runners.append(web.AppRunner(application))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runners[-1].addresses[0][1]}"

    yield serve
    for runner in runners:
        await runner.cleanup()


async def test_newest_traces_are_listed(tidegate, traces):
    done = await tidegate("trace", "list", "--url", traces.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == (
        "TRACE             BEGAN                         TIME      SPANS  SERVICE AND OPER"
        "ATION\n"
        "0b00000000000000  2025-11-24 16:00:00.040Z   1.00 ms          1  llm late\n"
        "0000000000000000  2025-11-24 16:00:00.020Z   1.00 ms          1  vision idle\n"
        "0000000000000000  2025-11-24 16:00:00.000Z   12.0 ms       2 ✗1  client call\n"
    )


async def test_list_can_be_narrowed_and_is_json_for_programs(tidegate, traces):
    async def listed(*options):
        done = await tidegate("trace", "list", "--json", "--url", traces.url, *options)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert [each["operation"] for each in await listed("--limit", "2")] == ["late", "idle"]
    assert await listed("--min-duration", "10ms") == [
        {
            "trace_id": f"{0xA1:032x}",
            "service": "client",
            "operation": "call",
            "start_us": 1_764_000_000_000_000,
            "duration_us": 12_000,
            "spans": 2,
            "errors": 1,
        }
    ]
    assert [each["service"] for each in await listed("--service", "llm")] == ["llm"]
    assert [each["operation"] for each in await listed("--operation", "idle")] == ["idle"]
    assert await listed("--service", "none") == []


async def test_last_trace_and_one_by_the_beginning_of_its_id_are_shown(tidegate, traces):
    last = await tidegate("trace", "show", "last", "--url", traces.url)
    begun = await tidegate("trace", "show", "0B00", "--url", traces.url)
    assert last.returncode == begun.returncode == 0
    assert last.stdout == begun.stdout
    assert last.stdout.decode().splitlines()[0].startswith("trace 0b000000")
    assert b"\x1b" not in last.stdout


async def test_last_waits_for_spans_in_transit(traces, monkeypatch):
    loop = asyncio.get_running_loop()
    latest = request(span(0xC << 120, 1, start_ms=60, name="latest"))

    async def arrive():
        await traces.stub.Export(latest)

    def spans_arrive(seconds):
        assert 0.5 < seconds <= 2
        asyncio.run_coroutine_threadsafe(arrive(), loop).result(10)

    async def shown(trace):
        arguments = ["show", trace, "--url", traces.url]
        return (await asyncio.to_thread(CliRunner().invoke, commands.app, arguments)).stdout

    monkeypatch.setattr(commands, "sleep", spans_arrive)
    assert "vision idle" in await shown("a2")
    assert "llm late" in await shown("0b")
    assert "vision latest" in await shown("last")


async def test_the_waterfall_is_drawn_from_the_api(tidegate, traces):
    done = await tidegate("trace", "show", "a1", "--url", traces.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == (
        f"trace {0xA1:032x}  2025-11-24 16:00:00.000Z\n"
        "12.0 ms, 2 spans, 2 services, 1 error\n"
        "\n"
        "SPAN                                    START     TIME  0                12.0 ms\n"
        "client call                              0 µs  12.0 ms  ████████████████████████\n"
        "└ ✗ vision work                       1.00 ms  1.00 ms    ██\n"
    )


async def test_trace_is_jaegers_json_for_programs(tidegate, traces):
    done = await tidegate("trace", "show", "a1", "--json", "--url", traces.url)
    assert [each["operationName"] for each in json.loads(done.stdout)["spans"]] == ["call", "work"]


async def test_an_unknown_or_ambiguous_id_is_an_error(tidegate, traces):
    for wanted, message in (
        ("f" * 32, f"there is no trace {'f' * 32} at {traces.url}"),
        ("ffff", f"there is no trace ffff at {traces.url}"),
        ("00", "2 traces begin with '00', such as"),
        ("what", "a trace id has 1 to 32 hexadecimal digits: 'what'"),
    ):
        done = await tidegate("trace", "show", wanted, "--url", traces.url)
        assert done.returncode == 1
        assert message in done.stderr.decode()
        assert done.stdout == b""


async def test_last_without_traces_is_an_error(tidegate, collector):
    traces = await collector()
    done = await tidegate("trace", "show", "last", "--url", traces.url)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "there are no traces" in done.stderr.decode()
    done = await tidegate("trace", "list", "--url", traces.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"no traces\n")


async def test_a_closed_port_is_an_error(tidegate):
    done = await tidegate("trace", "list", "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    stderr = done.stderr.decode()
    assert "cannot read traces from http://127.0.0.1:9: Connection refused" in stderr
    assert "give the URL of a Jaeger with --url" in stderr
    assert "--vision" not in stderr


async def test_a_malformed_url_is_an_error(tidegate):
    done = await tidegate("trace", "list", "--url", "file:///etc/passwd")
    assert done.returncode == 1
    assert "is not a URL" in done.stderr.decode()


async def test_a_refused_request_is_an_error(tidegate, traces):
    done = await tidegate("trace", "list", "--min-duration", "long", "--url", traces.url)
    assert done.returncode == 1
    assert "not a duration such as 1.5ms or 2h: 'long'" in done.stderr.decode()


def jaeger_trace(number, service, start_us):
    return {
        "traceID": f"{number:032x}",
        "processes": {"p1": {"serviceName": service, "tags": []}},
        "spans": [
            {
                "spanID": "1",
                "references": [],
                "operationName": "work",
                "startTime": start_us,
                "duration": 5,
                "tags": [],
                "processID": "p1",
            }
        ],
    }


async def test_jaeger_from_before_summaries_is_searched_service_by_service(tidegate, jaeger):
    both = [jaeger_trace(1, "a", 10), jaeger_trace(2, "b", 20)]
    url = await jaeger({"/api/services": {"data": ["a", "b"]}, "/api/traces": {"data": both}})
    done = await tidegate("trace", "list", "--json", "--url", url)
    assert done.returncode == 0, done.stderr
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["service"], each["spans"]) for each in listed] == [("b", 1), ("a", 1)]


async def test_a_server_other_than_jaeger_is_an_error(tidegate, jaeger):
    url = await jaeger({})
    for command in (("list",), ("show", "1" * 32)):
        done = await tidegate("trace", *command, "--url", url)
        assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    url = await jaeger({f"/api/traces/{'1' * 32}": {"data": [{"spans": 3}]}})
    done = await tidegate("trace", "show", "1" * 32, "--url", url)
    assert done.returncode == 1
    assert "does not have Jaeger's form" in done.stderr.decode()


def test_commands_need_neither_grpc_nor_aiohttp():
    code = (
        "import sys, tidegate.cli.traces.commands\n"
        "heavy = {'aiohttp', 'grpc', 'opentelemetry', 'google.protobuf'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
