"""Schemathesis on the gateway's own description, over the wire; docs/gateway-compatibility.md has
the results.

The gateway runs before the double that answers whatever it is asked, and before the real vision
server. Two documents are tried:

- the *description* as it is, with correct and with wrong requests. Every answer must be one that it
  describes, and every wrong request must be refused;
- a *narrower* one, without what no JSON Schema says, such as that `top_logprobs` needs `logprobs`.
  Its requests must be answered, and their events and answers are checked.

In both the names of models are those of the servers, or nearly each request would be a 404.

What Schemathesis would check but does not:

- ``use_after_free``, ``ensure_resource_availability``, ``object_level_authorization`` and the phase
  of stateful tests: no request of the gateway makes something that another one uses.
- ``ignored_auth``: the same description holds for gateways with and without keys, so it declares
  them as optional; test_keys.py tests them.
- ``not_a_server_error`` of 503 at ``/ready``: that is how readiness is told.
- ``positive_data_acceptance`` of the description as it is allows 400 (and 403 for load and unload,
  which clients may not do): see the narrower one, and the long test of load and unload.
- Data of answers for further requests, and feedback from errors: they have ids and times, and
  the same requests are wanted in each run.
"""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from answering_llm import ADAPTER, MODEL, answering_llm
from gateway_server import gateway
from vision_server import NETWORK, built_models, serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]

_VERSION = "1-int8"
_CHECKS = Path(__file__).parent
_NAMES = {
    # Empty lets the servers choose.
    "/v1/images:classify": {"model": [NETWORK, ""], "version": [_VERSION, ""]},
    "/v1/": {"model": [MODEL, ADAPTER]},
    "/v2/": {"model": [NETWORK], "version": [_VERSION]},
}
_CONFIG = """
hooks = "schemathesis_checks"
cache.enabled = false
max-stream-events = 100000
request-timeout = 60
phases.stateful.enabled = false
phases.examples.extra-data-sources.responses = false
phases.coverage.extra-data-sources.responses = false
phases.fuzzing.extra-data-sources.responses = false
phases.fuzzing.error-feedback.enabled = false
"""
_POSITIVE = ("--mode", "positive", "--phases", "fuzzing", "--generation-deterministic")
_FULL = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400"]

[[operations]]
include-path-regex = "/ready$"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "503"]

[[operations]]
include-path-regex = "/(load|unload)$"
checks.positive_data_acceptance.expected-statuses = ["400", "403"]
"""

_TEXT = {"type": "string"}
_PARTS = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "additionalProperties": False,
        "properties": {"type": {"enum": ["text"]}, "text": _TEXT},
    },
}


def _message(roles, **fields):
    return {
        "type": "object",
        "required": ["role", *fields],
        "additionalProperties": False,
        "properties": {"role": {"enum": roles}, **fields},
    }


_CALL = {
    "type": "object",
    "required": ["id", "function"],
    "additionalProperties": False,
    "properties": {
        "id": _TEXT,
        "type": {"enum": ["function"]},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "properties": {"name": _TEXT, "arguments": _TEXT},
        },
    },
}
_TOOL = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
# A token id has no fraction; for JSON Schema 1.0 is an integer, too.
_TOKEN_IDS = {"enum": [None, [], [1, 2]]}
# A PNG of one red pixel.
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
_INPUT = {"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [200, 30, 30]}
_FORMATS = {"enum": [{"type": "text"}, {"type": "json_object"}, None]}
# What stands in for fields of the description, with the rule that it cannot say; None leaves one
# out that needs another one.
_NARROWER = {
    "/v1/chat/completions": {
        # What a message needs depends on its role.
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": 4,
            "items": {
                "anyOf": [
                    _message(
                        ["system", "developer", "user", "assistant"],
                        content={"anyOf": [_TEXT, _PARTS]},
                    ),
                    _message(["tool"], content=_TEXT, tool_call_id=_TEXT),
                    _message(
                        ["assistant"],
                        tool_calls={"type": "array", "minItems": 1, "maxItems": 2, "items": _CALL},
                    ),
                ]
            },
        },
        "tools": {"enum": [None, [], [_TOOL]]},
        "tool_choice": {"enum": [None, "none", "auto"]},
        "response_format": _FORMATS,
        "stop_token_ids": _TOKEN_IDS,
        "structured_outputs": None,  # not beside response_format
        "stream_options": None,  # only with stream
        "top_logprobs": None,  # only with logprobs
        "max_tokens": None,  # not unlike max_completion_tokens
        "add_generation_prompt": None,  # the opposite of continue_final_message
        "chat_template_kwargs": {"enum": [None, {}, {"today": "Monday"}]},
    },
    "/v1/completions": {
        "prompt": {
            "anyOf": [{**_TEXT, "minLength": 1}, {"enum": [["a", "b"], [1, 2], [[1], [2]]]}]
        },
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": 2**32 - 1},  # 0 needs echo
        "response_format": _FORMATS,
        "stop_token_ids": _TOKEN_IDS,
        "structured_outputs": None,
        "stream_options": None,
        "best_of": None,  # only the same as n
    },
    "/v1/responses": {
        "input": {
            "anyOf": [
                _TEXT,
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 4,
                    "items": {
                        "anyOf": [
                            _message(["system", "developer", "user", "assistant"], content=_TEXT),
                            {
                                "enum": [
                                    {
                                        "type": "function_call",
                                        "call_id": "call_1",
                                        "name": "time",
                                        "arguments": "{}",
                                    },
                                    {
                                        "type": "function_call_output",
                                        "call_id": "call_1",
                                        "output": "12:00",
                                    },
                                    {
                                        "type": "reasoning",
                                        "summary": [{"type": "summary_text", "text": "Hm."}],
                                    },
                                ]
                            },
                        ]
                    },
                },
            ]
        },
        "text": {"enum": [None, {}, {"format": {"type": "text"}, "verbosity": "medium"}]},
        "tools": {"enum": [None, [], [{"type": "function", "name": "time", "strict": None}]]},
        "tool_choice": {"enum": [None, "none", "auto"]},
        "stream_options": None,
    },
    "/v1/embeddings": {
        "input": {"anyOf": [{**_TEXT, "minLength": 1}, {"enum": [["a", "b"], [1, 2], [[1], [2]]]}]},
    },
    "/v1/images:classify": {
        "images": {"enum": [[{"data": _PIXEL}]]},
        "top_k": {"enum": [1, 1000]},  # not more than the model has classes
    },
    "/v2/models/{model}/infer": {
        # Data of as many elements as the shape says, of an input that the model has.
        "inputs": {"enum": [[_INPUT]]},
        "outputs": {"enum": [[], [{"name": "logits", "parameters": {"classification": 3}}]]},
        "parameters": {"enum": [{}, {"timeout": 0, "priority": 1}]},  # those that the server knows
        "model_name": None,  # not unlike the path
        "model_version": None,
    },
}


@dataclass(frozen=True, slots=True)
class Report:
    """What Schemathesis reports of a run.

    Attributes:
        facts: Its report as JSON.
        text: What it prints.
    """

    facts: dict
    text: str


@pytest_asyncio.fixture(loop_scope="session")
async def llm():
    async with answering_llm() as llm:
        yield llm


@pytest_asyncio.fixture(loop_scope="session")
async def url(llm, vision_front):
    """The address of a gateway in front of both servers."""
    vision = vision_front.vision.address
    async with gateway(llm=[llm.target], vision=[vision]) as served:
        yield served.base_url


async def _description(url):
    """The description, with the names of the servers' models."""
    async with httpx.AsyncClient(base_url=url) as client:
        document = (await client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        names = next((_NAMES[start] for start in _NAMES if path.startswith(start)), {})
        for operation in operations.values():
            for each in operation.get("parameters", []):
                if each["name"] in names:
                    each["schema"] = {"enum": names[each["name"]]}
            for content in operation.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                for name in names.keys() & properties.keys():
                    properties[name] = {"enum": names[name]}
                for example in content.get("examples", {}).values():
                    example["value"] |= {
                        name: names[name][0] for name in names.keys() & example["value"].keys()
                    }
    return document


def _narrower(document):
    """The description without what a request may not have together."""
    paths = {path: document["paths"][path] for path in _NARROWER}
    for path, fields in _NARROWER.items():
        operation = paths[path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        properties = schema["properties"]
        for name, narrower in fields.items():
            assert name in properties, f"{path} has no field {name}"
            if narrower is None:
                del properties[name]
            else:
                properties[name] = narrower
        if "stream" in properties:
            # Half of the requests ask for a stream.
            properties["stream"] = {"enum": [True, False]}
            schema["required"].append("stream")
        # Without the examples and other forms of bodies, which have what was left out.
        operation["requestBody"]["content"] = {"application/json": {"schema": schema}}
        operation["parameters"] = [
            each for each in operation.get("parameters", []) if each["in"] == "path"
        ]
    return {**document, "paths": paths}


async def _run(url, folder, document, config, *options):
    """Runs Schemathesis as its users do: as a program of its own."""
    (folder / "schemathesis.toml").write_text(_CONFIG + config)
    (folder / "openapi.json").write_text(json.dumps(document))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", url),
        *("--no-color", "--continue-on-failure", "--report-json-path", "report.json"),
        *options,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(_CHECKS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        text = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report = folder / "report.json"
    assert report.exists(), text
    return Report(json.loads(report.read_text()), text)


def _check(report, document):
    assert report.facts["exit_code"] == 0, report.text
    assert report.facts["failures"] == report.facts["errors"] == []
    assert report.facts["operations"]["tested"] == sum(map(len, document["paths"].values()))


async def test_every_answer_is_one_that_the_description_has(url, tmp_path):
    document = await _description(url)
    options = ("--phases", "examples,coverage", "--generation-deterministic")
    report = await _run(url, tmp_path, document, _FULL, *options)
    _check(report, document)
    assert report.facts["test_cases"]["generated"] > 2000


async def test_what_the_description_promises_is_answered(url, llm, tmp_path):
    document = _narrower(await _description(url))
    report = await _run(url, tmp_path, document, "", *_POSITIVE, "--max-examples", "30")
    _check(report, document)
    # Every request was answered, and streams were among the answers.
    assert {each["fuzzing"]["accepted"] for each in report.facts["valid_rates"].values()} == {30}
    assert min(llm.calls[name] for name in ("Chat", "Generate", "Complete", "Embed")) > 10


async def test_an_event_that_the_description_does_not_have_is_found(url, tmp_path):
    document = _narrower(await _description(url))
    path = "/v1/chat/completions"
    operation = document["paths"][path]["post"]
    document["paths"] = {path: {"post": operation}}
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    body["properties"]["stream"] = {"enum": [True]}
    event = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
    chunk = event["properties"]["data"]["anyOf"][1]["contentSchema"]["anyOf"][0]
    chunk["properties"]["object"] = {"const": "other"}
    report = await _run(url, tmp_path, document, "", *_POSITIVE, "--max-examples", "1")
    assert [each["title"] for each in report.facts["failures"]] == ["SSE event violates schema"]


@pytest.mark.long
@pytest.mark.timeout(7200)
async def test_random_requests_are_answered_as_described(url, tmp_path):
    """Takes new requests each time; a failure prints the seed that repeats it."""
    for name, document, config, options in (
        ("full", await _description(url), _FULL, ("--phases", "examples,coverage,fuzzing")),
        ("narrower", _narrower(await _description(url)), "", ("--mode", "positive")),
    ):
        folder = tmp_path / name
        folder.mkdir()
        fresh = ("--generation-database", "none", "--max-examples", "200")
        _check(await _run(url, folder, document, config, *options, *fresh), document)


@pytest.mark.long
async def test_models_are_loaded_and_unloaded_as_described(tmp_path):
    """Needs a server of its own: others would find no model."""
    models = tmp_path / "models" / NETWORK
    models.mkdir(parents=True)
    (models / _VERSION).symlink_to(built_models() / NETWORK / _VERSION)
    async with (
        serving(models.parent, batch_sizes=[1]) as vision,
        gateway(vision=[vision.address], model_control=True) as served,
    ):
        document = await _description(served.base_url)
        paths = document["paths"]
        document["paths"] = {each: paths[each] for each in paths if each.endswith("load")}
        config = '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "400", "404"]'
        options = ("--phases", "examples,coverage", "--generation-deterministic")
        _check(await _run(served.base_url, tmp_path, document, config, *options), document)
