"""API keys over HTTP: who gets in, what they learn, and edits of the file."""

import asyncio
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import yaml
from gateway_server import gateway
from prometheus_client import REGISTRY
from raw_http import ask

from tidegate.gateway.callers import Anybody
from tidegate.gateway.context import context_of
from tidegate.gateway.keys.authentication import ApiKeys
from tidegate.gateway.keys.key_file import KeyFileError, read_keys
from tidegate.gateway.request_headers import ReadHeaders
from tidegate.gateway.responses import json_response

KEY, OTHER = "tg-the-right-one", "tg-another"


def entry(key, **more):
    return {"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


@pytest.fixture
def file(tmp_path):
    class File:
        path = tmp_path / "keys.yaml"

        def write(self, *entries):
            draft = tmp_path / "draft"
            draft.write_text(yaml.safe_dump({"keys": list(entries)}))
            draft.replace(self.path)

    return File()


def add_routes(app):
    async def use(request):
        caller = context_of(request).caller
        caller.check_model(request.query_params.get("model", "m"))
        taken = caller.reserve(int(request.query_params.get("tokens", 0)))
        return json_response({"name": caller.name}, headers=taken.headers)

    app.add_route("/v1/use", use, methods=["GET"])


@pytest.fixture
async def client(file):
    """A client of a gateway whose file of keys may be written before."""
    if not file.path.exists():
        file.write(entry(KEY))
    async with gateway(api_keys_file=file.path) as served:
        add_routes(served.gateway.app)
        async with httpx.AsyncClient(base_url=served.base_url) as client:
            client.served = served
            yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"api-key": KEY},
    ],
)
async def test_a_key_lets_in(client, headers):
    answer = await client.get("/v1/use", headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"name": KEY})


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "no API key was sent"),
        ({"authorization": f"Bearer {OTHER}"}, "is wrong"),
        ({"authorization": f"Basic {KEY}"}, "Bearer"),
        ({"authorization": KEY}, "Bearer"),
        ({"x-api-key": hashlib.sha256(KEY.encode()).hexdigest()}, "is wrong"),
        ({"authorization": b"Bearer \xff\xfe"}, "is wrong"),
    ],
)
async def test_without_the_right_key_nobody_gets_in(client, headers, says):
    answer = await client.get("/v1/use", headers=headers)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert says in error["message"]
    assert OTHER not in answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]


async def test_two_keys_are_refused(client):
    port = client.served.port
    twice = f"GET /v1/use HTTP/1.1\nHost: a\nX-Api-Key: {OTHER}\nX-Api-Key: {KEY}\n\n"
    assert (await ask(port, twice)).status == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/docs", 200),
        ("/openapi.json", 200),
        ("/metrics", 401),
        ("/v1/unknown", 401),
        ("/v2/models/m", 401),
        ("/healthz/more", 401),
    ],
)
async def test_what_needs_no_key(client, path, status):
    assert (await client.get(path)).status_code == status


async def test_disabled_and_expired_keys_are_told_so(file):
    yesterday = datetime.now(UTC) - timedelta(days=1)
    file.write(
        entry("disabled", disabled=True),
        entry("expired", expires=yesterday),
        entry("day", expires=yesterday.date()),
        entry("later", expires="2999-01-01"),
    )
    keys = ApiKeys(file.path)
    for name, says in (("disabled", "disabled"), ("expired", "expired"), ("day", "expired")):
        with pytest.raises(Exception, match=says) as raised:
            keys.caller_of(ReadHeaders("", api_key=name.encode()))
        assert raised.value.status == 401
    assert keys.caller_of(ReadHeaders("", api_key=b"later")).name == "later"


async def test_a_model_that_the_key_may_not_use_is_refused(file):
    file.write(entry(KEY, models=["small", "medium"]))
    caller = ApiKeys(file.path).caller_of(ReadHeaders("", api_key=KEY.encode()))
    caller.check_model("small")
    with pytest.raises(Exception, match="it may use: small, medium") as raised:
        caller.check_model("large")
    assert (raised.value.status, raised.value.param) == (403, "model")
    assert not caller.may_see("large")


async def test_limits_are_told_on_answers_and_refusals(file):
    file.write(entry(KEY, requests_per_minute=2, tokens_per_minute=1000))
    async with gateway(api_keys_file=file.path, cors_origins=["http://page"]) as served:
        add_routes(served.gateway.app)
        headers = {"authorization": f"Bearer {KEY}", "origin": "http://page"}
        async with httpx.AsyncClient(base_url=served.base_url, headers=headers) as client:
            for left in ("1", "0"):
                answer = await client.get("/v1/use?tokens=300")
                assert answer.status_code == 200
                assert answer.headers["x-ratelimit-remaining-requests"] == left
            answer = await client.get("/v1/use?tokens=300")
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    assert answer.headers["x-ratelimit-remaining-tokens"] in {"400", "401"}
    exposed = answer.headers["access-control-expose-headers"]
    assert {"x-request-id", "x-ratelimit-reset-tokens"} <= set(exposed.split(", "))


async def test_an_edit_counts_without_a_restart_and_a_broken_one_does_not(client, file):
    async def status_of(key):
        answer = await client.get("/v1/use", headers={"authorization": f"Bearer {key}"})
        return answer.status_code

    async def until(key, status):
        async with asyncio.timeout(10):
            while await status_of(key) != status:
                await asyncio.sleep(0.05)

    def count(result):
        name = "tidegate_gateway_key_reloads_total"
        return REGISTRY.get_sample_value(name, {"result": result})

    assert await status_of(OTHER) == 401
    file.write(entry(KEY), entry(OTHER))
    await until(OTHER, 200)
    refused = count("refused")
    file.path.write_text("keys: [{name: a, sha256: no hash}]")
    async with asyncio.timeout(10):
        while count("refused") == refused:
            await asyncio.sleep(0.05)
    assert await status_of(OTHER) == 200
    file.write(entry(OTHER))
    await until(KEY, 401)


def test_budgets_outlive_an_edit_that_does_not_change_them(file):
    file.write(entry(KEY, tokens_per_minute=100, requests_per_minute=5))
    keys = ApiKeys(file.path, clock=lambda: 0.0)
    headers = ReadHeaders("", api_key=KEY.encode())
    keys.caller_of(headers).reserve(60)
    file.write(entry(KEY, tokens_per_minute=100, requests_per_minute=50), entry(OTHER))
    assert keys.reload()
    caller = keys.caller_of(headers)
    assert (caller.limits.tokens.level, caller.limits.requests.level) == (40, 50)
    assert not keys.reload()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file: "),
        ("keys: []", "keys: "),
        ("keys: {", "is not YAML"),
        ("\x00", "is not YAML"),
        ("keys: [{name: a}]", "keys[0].sha256: Field required"),
        (yaml.safe_dump({"keys": [entry("a b")]}), "keys[0].name: "),
        (yaml.safe_dump({"keys": [entry("a"), entry("a")]}), "2 keys have the name 'a'"),
        (
            yaml.safe_dump({"keys": [entry("a"), {**entry("a"), "name": "b"}]}),
            "2 keys have the sha256",
        ),
        (yaml.safe_dump({"keys": [entry("a", tokens_per_minute=0)]}), "keys[0].tokens_per_minute"),
        (yaml.safe_dump({"keys": [entry("a", model="m")]}), "keys[0].model: "),
        (yaml.safe_dump({"keys": [entry("a", expires="soon")]}), "keys[0].expires"),
        (yaml.safe_dump({"keys": [entry("a", expires="2027-01-01T00:00")]}), "keys[0].expires"),
    ],
)
def test_an_invalid_file_is_told_with_the_field(file, content, says):
    file.path.write_text(content)
    with pytest.raises(KeyFileError) as raised:
        read_keys(file.path)
    assert str(file.path) in str(raised.value)
    assert says in str(raised.value)


def test_a_key_in_place_of_its_hash_does_not_get_into_the_log(file):
    file.write({"name": "a", "sha256": KEY})
    with pytest.raises(KeyFileError) as raised:
        read_keys(file.path)
    assert KEY not in str(raised.value)


async def test_a_file_that_is_missing_stops_the_start(tmp_path):
    with pytest.raises(KeyFileError, match="cannot be read"):
        async with gateway(api_keys_file=tmp_path / "none.yaml"):
            pass


def test_the_command_makes_a_key_whose_entry_is_valid(file):
    command = [sys.executable, "-m", "tidegate.gateway.keys", "new", "team-a"]
    made = subprocess.run(
        [*command, "--models", "a, b", "--tokens-per-minute", "9", "--expires", "2999-06-30"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    ).stdout
    key = next(line.strip() for line in made.splitlines() if line.strip().startswith("tg-"))
    file.path.write_text("keys:\n" + made[made.index("- name:") :])
    caller = ApiKeys(file.path).caller_of(ReadHeaders("", authorization=f"Bearer {key}".encode()))
    assert (caller.name, caller.key.models, caller.limits.tokens.per_minute) == (
        "team-a",
        ["a", "b"],
        9,
    )
    failed = subprocess.run([*command, "--expires", "soon"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "expires" in failed.stderr


async def test_without_a_file_everybody_gets_in():
    async with gateway() as served:
        add_routes(served.gateway.app)
        async with httpx.AsyncClient(base_url=served.base_url) as client:
            answer = await client.get("/v1/use", headers={"authorization": "Bearer anything"})
    assert answer.json() == {"name": Anybody.name}
